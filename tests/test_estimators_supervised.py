"""LISTA, variational network and direct inversion: what they begin as, in theory, and what they learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import make_interp_spline
from scipy.signal import correlate2d
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, RidgeCV
from torch import Tensor, nn
from torch.testing import assert_close

import skinverse
from skinverse import LISTA, DirectInversion, Trainer, VariationalNetwork
from skinverse.datasets import make_ellipses
from skinverse.estimators import _direct
from skinverse.estimators._direct import Direct
from skinverse.estimators._sparse_coding import Convolutional, Dense, cosines, soft
from skinverse.estimators._variational_network import _RANGE, Experts, Spline, centred
from skinverse.metrics import psnr
from skinverse.operators import as_torch, fourier_sampling, parallel_beam

SMALL: dict[Any, dict[str, Any]] = {
    LISTA: {"n_iterations": 3, "kernel_size": 3},
    VariationalNetwork: {"n_iterations": 3, "n_filters": 4, "kernel_size": 3, "n_knots": 7},
    DirectInversion: {"network": "dncnn"},
}
every = pytest.mark.parametrize("method", list(SMALL))
iterative = pytest.mark.parametrize("method", [LISTA, VariationalNetwork])
either = pytest.mark.parametrize("kind", ["real", "complex"])
# Learns nothing, but finds the units.
IDLE = Trainer(max_epochs=1, lr=0.0, validation_fraction=0.0)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def trainer(max_epochs: int = 2, **changed: Any) -> Trainer:
    return Trainer(**({"max_epochs": max_epochs, "validation_fraction": 0.0, "max_norm": 1.0} | changed))


class Still(nn.Module):
    """Leaves its input alone, whatever it is taught."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.nothing


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """Networks that a test makes itself draw their weights here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small_operator(kind: str) -> pylops.LinearOperator:
    """Of images of 4 x 5 pixels, not of norm 1."""
    if kind == "real":
        return parallel_beam((4, 5), np.arange(3), 7, dtype="float64")
    return 3.0 * fourier_sampling(np.random.default_rng(0).random((4, 5)) < 0.6)


def dense_matrix(A: pylops.LinearOperator) -> np.ndarray:
    """What a real or complex operator does to channels."""
    M = A.todense()
    return np.block([[M.real, -M.imag], [M.imag, M.real]]) if np.iscomplexobj(M) else M


def batch(A: pylops.LinearOperator, n: int = 2) -> tuple[Tensor, Tensor]:
    """Data and a start in double precision."""
    dtype = torch.complex128 if np.issubdtype(A.dtype, np.complexfloating) else torch.float64
    return random(n, *A.dimsd, seed=1, dtype=dtype), random(n, *A.dims, seed=2, dtype=dtype)


def flat_channels(x: Tensor) -> np.ndarray:
    parts = [x.real, x.imag] if x.is_complex() else [x]
    return np.concatenate([part.flatten(1).numpy() for part in parts], axis=1)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[np.ndarray, np.ndarray, Any]]:
    """Sixteen small images, their noisy data and operator: tomography, and Fourier samples of two coils."""
    rng = np.random.default_rng(1)
    images = make_ellipses(16, 12, random_state=0)
    slope = np.linspace(0.2, 1.0, 12) * np.ones((12, 12))
    maps = np.stack([slope, 0.1 + 1j * slope.T])
    problems = {
        "real": (images, parallel_beam((12, 12), np.arange(6) * np.pi / 6, 17)),
        "complex": (images * np.exp(1j * images), fourier_sampling(rng.random((12, 12)) < 0.5, maps)),
    }
    found = {}
    for kind, (X, A) in problems.items():
        exact = np.stack([A @ x for x in X])
        found[kind] = X, exact + 0.02 * np.abs(exact).mean() * rng.normal(size=exact.shape), A
    return found


# ------------------------------------------------------------------------- LISTA: the dictionaries
def cosine_waves(n: int) -> np.ndarray:
    """Orthonormal cosines of ``n`` points, a row for each frequency."""
    u, a = np.arange(n)[:, None], np.arange(n)
    return np.sqrt(np.where(u == 0, 1, 2) / n) * np.cos(np.pi * (a + 0.5) * u / n)


def cosine_images(channels: int, height: int, width: int) -> np.ndarray:
    waves = np.kron(cosine_waves(height), cosine_waves(width))
    return np.kron(np.eye(channels), waves).reshape(-1, channels, height, width)


def frame(atoms: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each atom at each place where a part of it is inside: the matrix ``D``, codes to pixels."""
    n, c, k, _ = atoms.shape
    columns = []
    for atom in atoms:
        for i in range(height + k - 1):
            for j in range(width + k - 1):
                canvas = np.zeros((c, height + 2 * k - 2, width + 2 * k - 2))
                canvas[:, i : i + k, j : j + k] = atom
                columns.append(canvas[:, k - 1 : k - 1 + height, k - 1 : k - 1 + width].ravel())
    return np.stack(columns, axis=1)


def untrained(A: pylops.LinearOperator, *, unit: float = 1.0, **parameters: Any) -> Any:
    """The module of LISTA as it begins, in double precision."""
    method = LISTA(A, **parameters)
    method.real_ = not np.issubdtype(A.dtype, np.complexfloating)
    method.n_channels_ = (1, 1) if method.real_ else (2, 2)
    method.operator_ = A
    module = method._make_module().double()
    module.unit.fill_(unit)
    return module


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 6), (2, 3, 4), (1, 5, 2)])
def test_cosines_are_orthonormal(shape: tuple[int, int, int]) -> None:
    n = int(np.prod(shape))
    found = cosines(*shape)
    assert_allclose(found, cosine_images(*shape), atol=1e-13)
    assert_allclose(found.reshape(n, n) @ found.reshape(n, n).T, np.eye(n), atol=1e-13)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 4), (9, 8)])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 7])
@either
def test_the_convolutional_cosines_are_a_parseval_frame(
    kind: str, kernel_size: int, size: tuple[int, int]
) -> None:
    A = pylops.Identity(size, dtype="float64" if kind == "real" else "complex128")
    module = untrained(A, kernel_size=kernel_size)
    x, D = random(2, module.n_channels[0], *size), module.size * module.synthesis[0]
    z = module._analyse(x, D)
    assert_close(module._synthesise(z, D), x, atol=1e-12, rtol=0)
    assert_close(z.square().sum(), x.square().sum())


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
@pytest.mark.parametrize("make", [Convolutional, Dense])
def test_analysis_is_the_adjoint_of_synthesis_for_all_atoms(make: Any, size: tuple[int, int]) -> None:
    atoms = random(5, 2, 3, 3) if make is Convolutional else random(5, 2, *size)
    module = make((2, 2), 1, atoms, 1, tied=True)
    x = random(2, 2, *size, seed=1)
    analysed = module._analyse(x, atoms)
    z = random(*analysed.shape, seed=2)
    assert_close((analysed * z).sum(), (x * module._synthesise(z, atoms)).sum())


def test_soft_thresholding_is_the_prox_of_the_norm() -> None:
    z, level = 2 * random(3, 4, 5, 6), torch.tensor([0.0, 0.3, 1.0, 9.0], dtype=torch.float64)
    p, theta = soft(z, level), level.reshape(-1, 1, 1).expand_as(z)
    assert_array_equal(soft(z[..., 0, 0], level), p[..., 0, 0])
    # z - p is a subgradient of theta |.| at p, which only the prox fulfils.
    assert_close((z - p)[p != 0], (theta * p.sign())[p != 0])
    assert ((z - p).abs() <= theta + 1e-12).all()
    assert (p[:, 0] == z[:, 0]).all() and (p[:, 3] == 0).all() and 0 < (p == 0).double().mean() < 1


# ----------------------------------------------------------------------------- LISTA: iterations
def dictionaries(kind: str) -> dict[str, tuple[Any, np.ndarray]]:
    """What is asked for, and the matrix that it means for 4 x 5 pixels."""
    c = 1 if kind == "real" else 2
    eye, drawn = np.eye(20).reshape(20, 4, 5), np.random.default_rng(5).normal(size=(30, 4, 5))
    drawn = drawn if kind == "real" else drawn + 1j * drawn[::-1]
    channels = flat_channels(torch.from_numpy(drawn))
    own = channels.T / np.linalg.norm(channels, 2)
    return {
        "convolutional": ("convolutional", frame(cosine_images(c, 3, 3) / 3, 4, 5)),
        "dense": ("dense", cosine_images(c, 4, 5).reshape(-1, 20 * c).T),
        "eye": (eye if kind == "real" else np.concatenate([eye, 1j * eye]), np.eye(20 * c)),
        "own": (drawn, own),
    }


def thresholds(D: np.ndarray, name: str, kind: str) -> np.ndarray:
    """0.05 for each code, 0 for that of a constant."""
    theta = np.full(D.shape[1], 0.05)
    c = 1 if kind == "real" else 2
    if name == "convolutional":
        theta.reshape(c, 9, -1)[:, 0] = 0
    if name == "dense":
        theta.reshape(c, 20)[:, 0] = 0
    return theta


@pytest.mark.parametrize("tied_and_shared", [(True, True), (False, False)])
@pytest.mark.parametrize("name", ["convolutional", "dense", "eye", "own"])
@either
def test_before_the_training_it_is_iterative_soft_thresholding(
    kind: str, name: str, tied_and_shared: tuple[bool, bool]
) -> None:
    A = small_operator(kind)
    asked, D = dictionaries(kind)[name]
    tied, shared = tied_and_shared
    module = untrained(A, dictionary=asked, n_iterations=4, kernel_size=3, tied=tied, shared=shared)
    norm = as_torch(A).norm()
    M = dense_matrix(A) / norm
    assert np.linalg.norm(M, 2) == pytest.approx(1, rel=1e-3)
    data, start = batch(A)
    y, z, theta = flat_channels(data) / norm, flat_channels(start) @ D, thresholds(D, name, kind)
    stages = list(module.stages(as_torch(A), data, start))
    assert len(stages) == 4
    for x in stages:
        z = z - (z @ D.T @ M.T - y) @ M @ D
        z = np.sign(z) * np.maximum(np.abs(z) - theta, 0)
        assert_allclose(flat_channels(x.detach()), z @ D.T, atol=1e-10)
    assert 0 < (z == 0).mean() < 1


@pytest.mark.parametrize("name", ["convolutional", "eye", "own"])
@either
def test_the_objective_falls_in_each_step(kind: str, name: str, monkeypatch: Any) -> None:
    A = small_operator(kind)
    asked, D = dictionaries(kind)[name]
    module = untrained(A, dictionary=asked, n_iterations=30, kernel_size=3)
    codes, synthesise = [], module._synthesise

    def recorded(z: Tensor, atoms: Tensor) -> Tensor:
        codes.append(z.detach().flatten(1).numpy())
        return synthesise(z, atoms)

    monkeypatch.setattr(module, "_synthesise", recorded)
    data, start = batch(A)
    module(as_torch(A), data, start)
    norm = as_torch(A).norm()
    M, y, theta = dense_matrix(A) / norm, flat_channels(data) / norm, thresholds(D, name, kind)
    values = [0.5 * np.square(z @ D.T @ M.T - y).sum(1) + np.abs(z) @ theta for z in codes]
    assert (np.diff(values, axis=0) <= 1e-12).all()
    assert (values[-1] < 0.9 * values[0]).all()


def test_many_iterations_end_at_the_lasso() -> None:
    A = pylops.MatrixMult(np.random.default_rng(0).normal(size=(24, 10)))
    module = untrained(A, dictionary=np.eye(10), n_iterations=400)
    norm = as_torch(A).norm()
    data, start = batch(A)
    lasso = Lasso(alpha=0.05 / 24, fit_intercept=False, tol=1e-12, random_state=0)
    expected = lasso.fit(A.A / norm, data.T.numpy() / norm).coef_
    assert_allclose(module(as_torch(A), data, start).detach().numpy(), expected, atol=1e-6)
    assert 0 < (expected == 0).mean() < 1


def sparse_signals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, pylops.LinearOperator]:
    """Signals of 40 numbers, a tenth of them not zero, and 24 random measurements of each."""
    rng = np.random.default_rng(seed)
    signals = rng.normal(size=(n, 40)) * (rng.random((n, 40)) < 0.1)
    A = np.random.default_rng(99).normal(size=(24, 40)) / np.sqrt(24)
    return signals, signals @ A.T, pylops.MatrixMult(A)


@pytest.mark.parametrize("tied", [True, False])
def test_a_few_trained_iterations_beat_as_many_untrained_ones(tied: bool) -> None:
    signals, data, A = sparse_signals(500, 0)
    X, Y, _ = sparse_signals(200, 1)
    given: dict[str, Any] = {"dictionary": np.eye(40), "n_iterations": 5, "tied": tied, "shared": False}
    learned = LISTA(A, **given, trainer=trainer(20, batch_size=50, lr=5e-2, lr_decay=0.1))
    learned.fit(signals, data)
    plain = LISTA(A, **given, trainer=IDLE).fit(signals, data)
    best = np.inf
    for level in (0.02, 0.05, 0.1, 0.2, 0.5):  # with whatever threshold
        plain.module_.threshold.data.fill_(level)
        best = min(best, np.square(plain.predict(Y) - X).mean())
    assert np.square(learned.predict(Y) - X).mean() < 0.6 * best


def test_what_is_tied_or_shared_has_fewer_weights() -> None:
    def n_weights(tied: bool, shared: bool) -> int:
        module = untrained(pylops.Identity((4, 5)), kernel_size=3, n_iterations=6, tied=tied, shared=shared)
        return sum(p.numel() for p in module.parameters())

    assert n_weights(True, True) == 9 * 9 + 9
    assert n_weights(False, True) == 2 * 9 * 9 + 9
    assert n_weights(True, False) == 6 * n_weights(True, True)
    assert n_weights(False, False) == 6 * n_weights(False, True)


@iterative
def test_another_operator_and_size_need_no_training(method: Any, pairs: Any) -> None:
    images, data, A = pairs["real"]
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    other = parallel_beam((14, 16), np.arange(12) * np.pi / 12, 23)
    X = make_ellipses(2, 16, random_state=5)[:, 1:15]
    Y = np.stack([other @ x for x in X])
    x = model.set_params(operator=other).predict(Y)
    assert psnr(X, x).mean() > psnr(X, np.zeros_like(X)).mean() + 3


@pytest.mark.parametrize("dictionary", ["dense", np.eye(144).reshape(144, 12, 12)])
def test_a_dense_dictionary_refuses_other_sizes(dictionary: Any, pairs: Any) -> None:
    images, data, A = pairs["real"]
    model = LISTA(A, dictionary=dictionary, n_iterations=2, trainer=IDLE).fit(images, data)
    other = parallel_beam((10, 12), np.arange(4), 17)
    with pytest.raises(ValueError, match=r'\(1, 12, 12\).*got \(1, 10, 12\).*"convolutional"'):
        model.set_params(operator=other).predict(np.zeros((1, 4, 17)))


@pytest.mark.parametrize(
    ("dictionary", "error", "sentence"),
    [
        ("wavelets", ValueError, "'convolutional', 'dense'.*'wavelets'"),
        (np.eye(8), ValueError, r"\(n_atoms, 9\), got \(8, 8\)"),
        (np.zeros((5, 3, 3)), ValueError, r"\(n_atoms, 9\), got \(5, 3, 3\)"),
        (3, ValueError, r"dictionary: expected a batch"),
        (np.zeros((0, 9)), ValueError, r"dictionary: .*at least one"),
        (np.full((3, 9), np.nan), ValueError, "dictionary: expected finite"),
        (1j * np.eye(9), ValueError, "dictionary: expected real atoms"),
        ([["a"] * 9], TypeError, "dictionary: expected an array of numbers"),
    ],
)
def test_what_is_no_dictionary_is_refused(dictionary: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        LISTA(dictionary=dictionary, trainer=IDLE).fit(np.ones((2, 9)), np.ones((2, 9)))


def test_atoms_are_saved_with_the_method(tmp_path: Any) -> None:
    signals, data, A = sparse_signals(6, 0)
    model = LISTA(A, dictionary=np.eye(40), n_iterations=2, trainer=trainer()).fit(signals, data)
    model.save(tmp_path / "lista.skinverse")
    loaded = skinverse.load(tmp_path / "lista.skinverse")
    assert_array_equal(loaded.predict(data), model.predict(data))
    assert_array_equal(loaded.dictionary, np.eye(40))


# ------------------------------------------------------------------------- the variational network
@pytest.mark.parametrize("n_knots", [2, 3, 8])
def test_splines_are_linear_between_knots_and_constant_beyond(n_knots: int) -> None:
    knots, values = np.linspace(-_RANGE, _RANGE, n_knots), random(3, n_knots)
    t = torch.cat([2 * random(2, 3, 4, 5), 50 * random(2, 3, 4, 5, seed=1)], -1)
    t.view(-1)[:n_knots] = torch.from_numpy(knots)
    found = Spline.apply(t, values)
    for i in range(3):
        assert_allclose(found[:, i], np.interp(t[:, i], knots, values[i]), atol=1e-12)
    ends = Spline.apply(torch.tensor([-1e6, 1e6], dtype=torch.float64).expand(1, 3, 1, 2), values)
    assert_close(ends[0, :, 0], values[:, [0, -1]])


@pytest.mark.parametrize("n_knots", [2, 5])
def test_splines_have_exact_derivatives(n_knots: int) -> None:
    spacing = 2 * _RANGE / (n_knots - 1)
    generator = torch.Generator().manual_seed(3)
    pieces = torch.randint(-2, n_knots + 1, (2, 3, 2, 4), generator=generator)  # some are beyond the ends
    inside = 0.1 + 0.8 * torch.rand(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    t = (-_RANGE + spacing * (pieces + inside)).requires_grad_()
    assert (t.abs() > _RANGE).any() and (t.abs() < _RANGE).any()
    assert torch.autograd.gradcheck(Spline.apply, (t, random(3, n_knots).requires_grad_()))


def test_what_is_no_number_stays_none() -> None:
    t = torch.tensor([np.nan, 0.0, np.inf, -np.inf]).reshape(1, 1, 1, 4)
    assert_array_equal(Spline.apply(t, torch.tensor([[-1.0, 0.5, 3.0]])).flatten(), [np.nan, 0.5, 3.0, -1.0])


@pytest.mark.parametrize(("channels", "size"), [(1, 3), (2, 3), (2, 7)])
def test_filters_have_mean_zero_and_norm_one(channels: int, size: int) -> None:
    K = centred(5 * random(4, channels, size, size) + 2)
    assert_allclose(K.mean((-2, -1)), 0, atol=1e-14)
    assert_allclose(K.flatten(1).norm(dim=1), 1)


def test_constant_filters_see_nothing() -> None:
    assert_array_equal(centred(torch.ones(2, 1, 3, 3)), 0)
    assert_array_equal(centred(torch.ones(2, 1, 1, 1)), 0)


@either
def test_without_slopes_it_is_gradient_descent(kind: str) -> None:
    A = small_operator(kind)
    n = 1 if kind == "real" else 2
    module = Experts((n, n), 4, 3, 3, 5).double()
    module.unit.fill_(1.0)
    module.slopes.data.zero_()
    data, start = batch(A)
    norm = as_torch(A).norm()
    M, y, x = dense_matrix(A) / norm, flat_channels(data) / norm, flat_channels(start)
    stages = list(module.stages(as_torch(A), data, start))
    assert len(stages) == 4
    for found in stages:
        x = x - (x @ M.T - y) @ M
        assert_allclose(flat_channels(found.detach()), x, atol=1e-11)


def test_without_data_each_step_descends_the_potentials() -> None:
    module = Experts((2, 2), 1, 3, 5, 9).double()
    module.unit.fill_(1.0)
    module.log_lam.data.fill_(-1e4)
    module.slopes.data = random(1, 3, 9, seed=4)
    K = centred(module.filters[0]).detach().numpy()
    knots = np.linspace(-_RANGE, _RANGE, 9)
    potentials = [make_interp_spline(knots, v, k=1).antiderivative() for v in module.slopes[0].detach()]

    def energy(x: np.ndarray) -> float:
        responses = [sum(correlate2d(x[c], k[c], mode="same") for c in (0, 1)) for k in K]
        return float(sum(phi(r).sum() for phi, r in zip(potentials, responses, strict=True)))

    x, d = (0.3 * random(2, 6, 4, seed=s).numpy() for s in (5, 6))
    A = pylops.Identity((6, 4), dtype="complex128")
    start = torch.from_numpy(x[0] + 1j * x[1])[None]
    step = start - module(as_torch(A), torch.zeros_like(start), start).detach()
    slope = (np.stack([step[0].real, step[0].imag]) * d).sum()
    assert slope == pytest.approx((energy(x + 1e-6 * d) - energy(x - 1e-6 * d)) / 2e-6, rel=1e-6)


def make_lista(tied: bool) -> Any:
    module = Convolutional((1, 1), 2, torch.from_numpy(cosines(1, 3, 3) / 3), 2, tied=tied)
    module.synthesis.data += 0.1 * random(*module.synthesis.shape, seed=7)
    module.threshold.data.fill_(0.04)
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_lista(True),
        lambda: make_lista(False),
        lambda: Dense((1, 1), 2, torch.from_numpy(cosines(1, 5, 5)), 1, tied=False),
        lambda: Experts((1, 1), 2, 3, 3, 6),
    ],
    ids=["tied", "untied", "dense", "variational"],
)
def test_weights_have_exact_derivatives(make: Any) -> None:
    network = make().double()
    network.unit.fill_(1.0)
    A = as_torch(parallel_beam((5, 5), np.arange(3), 7))
    x = random(2, 5, 5)
    y, start = A(x), random(2, 5, 5, seed=1)

    def loss() -> Tensor:
        return (network(A, y, start) - x).square().sum()

    loss().backward()
    # A threshold of exactly zero, that of a constant, cannot fall any further.
    directions = [
        random(*p.shape, seed=i) * (p.detach() != 0 if name == "threshold" else 1.0)
        for i, (name, p) in enumerate(network.named_parameters())
    ]
    slope = sum((p.grad * d).sum() for p, d in zip(network.parameters(), directions, strict=True))
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(network.parameters(), directions, strict=True):
                p.add_(step * d)
            values.append(loss())
            for p, d in zip(network.parameters(), directions, strict=True):
                p.sub_(step * d)
    # Each iteration that has weights of its own uses them.
    assert all((p.grad.reshape(len(p), -1) != 0).any(1).all() for p in network.parameters())
    assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_several_coils_are_learned_from() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:16j, -1:1:16j]
    centres = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    maps = np.stack([np.exp(-((rows - a) ** 2 + (columns - b) ** 2) / 2 + 1j * a * rows) for a, b in centres])
    maps /= np.sqrt(np.square(np.abs(maps)).sum(0))
    mask = np.zeros((16, 16), dtype=bool)
    mask[:, ::2] = mask[:, 6:10] = True
    A = fourier_sampling(mask, maps)
    images = make_ellipses(40, 16, random_state=0) * np.exp(1j * (columns + 0.5))
    data = np.stack([A @ x for x in images])
    data += 0.02 * (rng.normal(size=data.shape) + 1j * rng.normal(size=data.shape))
    model = VariationalNetwork(A, n_iterations=4, n_filters=8, kernel_size=5, trainer=trainer(30, lr=1e-2))
    found = model.fit(images[:32], data[:32]).predict(data[32:])
    assert np.iscomplexobj(found)
    truth = images[32:]
    zero_filled = np.stack([A.H @ y for y in data[32:]])
    start = model._start(as_torch(A), torch.from_numpy(data[32:])).numpy()
    quality = psnr(truth, found).mean()
    assert quality > psnr(truth, zero_filled).mean() + 3
    assert quality > psnr(truth, start).mean() + 3


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kernel_size": 4}, "kernel_size: expected an odd number, at least 3, got 4"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"n_knots": 1}, "n_knots: expected at least 2, got 1"),
        ({"n_knots": 0}, "n_knots"),
        ({"n_filters": 0}, "n_filters"),
        ({"n_iterations": 0}, "n_iterations"),
    ],
)
def test_numbers_that_make_no_variational_network_are_refused(changed: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VariationalNetwork(**changed).fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


# ------------------------------------------------------------------------------- direct inversion
def ridge_cv(data: np.ndarray, images: np.ndarray) -> RidgeCV:
    """Ridge regression whose weight is chosen from seven decades around the size of the data."""
    relative = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2]
    alphas = data.shape[1] * np.square(data).mean() * np.array(relative)
    return RidgeCV(alphas).fit(data, images.reshape(len(images), -1))


def linear_pairs(n: int, seed: int = 0, n_measurements: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Images of 3 x 4 pixels and data that are a noisy linear function of them."""
    A = np.random.default_rng(99).normal(size=(n_measurements, 12))
    rng = np.random.default_rng(seed)
    images = 2 + np.cumsum(rng.normal(size=(n, 12)), axis=1)
    return images.reshape(n, 3, 4), images @ A.T + 0.5 * rng.normal(size=(n, n_measurements))


@pytest.mark.parametrize("n", [3, 30])
def test_direct_inversion_starts_as_ridge_regression(n: int) -> None:
    images, data = linear_pairs(n)
    Y = linear_pairs(5, seed=1)[1]
    module = Direct((1, 3, 4), 9, Still()).double()
    module.start(torch.from_numpy(images)[:, None], torch.from_numpy(data))
    expected = ridge_cv(data, images).predict(Y)
    assert_allclose(module(torch.from_numpy(Y)).detach().flatten(1).numpy(), expected, atol=1e-8)
    model = DirectInversion(network=Still(), trainer=IDLE).fit(images, data)
    assert_allclose(model.predict(Y).reshape(5, -1), expected, rtol=1e-3, atol=1e-3)


def test_the_start_knows_nothing_of_what_is_held_out() -> None:
    images, data = linear_pairs(20)
    idle = Trainer(max_epochs=1, lr=0.0, validation_fraction=0.3)
    order, held = (part.numpy() for part in idle.split(torch.arange(20), seed_of_state_zero()))
    assert len(held) == 6
    model = DirectInversion(network=Still(), trainer=idle).fit(images, data)
    Y = linear_pairs(5, seed=1)[1]
    expected = ridge_cv(data[order], images[order]).predict(Y)
    assert_allclose(model.predict(Y).reshape(5, -1), expected, rtol=1e-3, atol=1e-3)
    images[held], data[held] = 1e3 * images[held][::-1], -data[held]
    assert_array_equal(clone_fit(model, images, data).predict(Y), model.predict(Y))


def seed_of_state_zero() -> int:
    """The seed of the trainer under ``random_state=0``."""
    return int(np.random.RandomState(0).randint(2**31))


def clone_fit(model: Any, images: np.ndarray, data: np.ndarray) -> Any:
    return type(model)(**model.get_params(deep=False)).fit(images, data)


def test_training_is_never_worse_than_its_start_on_what_is_held_out() -> None:
    images, data = linear_pairs(40)
    wild = Trainer(max_epochs=3, lr=0.3, validation_fraction=0.4)
    model = DirectInversion(trainer=wild).fit(images, data)
    idle = clone_fit(
        DirectInversion(trainer=Trainer(max_epochs=1, lr=0.0, validation_fraction=0.4)), images, data
    )
    kept, held = (part.numpy() for part in wild.split(torch.arange(40), seed_of_state_zero()))
    assert model.score(images[held], data[held]) >= idle.score(images[held], data[held]) - 1e-3
    without = clone_fit(DirectInversion(trainer=trainer(3, lr=0.3, max_norm=None)), images[kept], data[kept])
    assert without.score(images[held], data[held]) < idle.score(images[held], data[held]) - 1


def test_many_gaussian_pairs_lead_to_the_best_linear_estimate() -> None:
    rng = np.random.default_rng(0)
    A, root, noise_std = rng.normal(size=(5, 6)), np.tril(rng.normal(size=(6, 6))), 0.5
    z, noise = rng.normal(size=(3000, 6)), noise_std * rng.normal(size=(3000, 5))
    images, covariance = 1 + z @ root.T, root @ root.T
    data = images @ A.T + noise
    gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + noise_std**2 * np.eye(5))
    best = 1 + (data - (A @ np.ones(6))) @ gain.T
    learned = DirectInversion(network=Still(), trainer=trainer(2, batch_size=50, lr=1e-4))
    found = learned.fit(images[:2000], data[:2000]).predict(data[2000:])
    errors = [np.square(x - images[2000:]).mean() for x in (found, best[2000:], np.ones((1000, 6)))]
    assert errors[0] < 1.02 * errors[1] and errors[1] < 0.5 * errors[2]
    assert np.square(found - best[2000:]).mean() < 0.02 * errors[1]


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 5)])
@pytest.mark.parametrize("kinds", [(float, float), (float, complex), (complex, float), (complex, complex)])
def test_without_an_operator_data_may_have_any_shape_and_kind(kinds: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 3, 4)).astype(kinds[0]) * (1 if kinds[0] is float else 1 + 0.5j)
    data = rng.normal(size=(8, *shape)).astype(kinds[1]) * (1 if kinds[1] is float else 1 - 2j)
    model = DirectInversion(trainer=trainer(1)).fit(images, data)
    found = model.predict(data)
    assert found.shape == images.shape and found.dtype == images.dtype
    assert_allclose(model.predict(data.reshape(8, -1)), found)
    with pytest.raises(ValueError, match="Y_meas: expected"):
        model.predict(np.zeros((2, 99)))


@pytest.mark.parametrize("kind", [float, complex])
def test_real_data_are_not_taken_for_complex_ones(kind: Any) -> None:
    images, data = linear_pairs(6)
    model = DirectInversion(trainer=trainer(1)).fit(images, data.astype(kind))
    with pytest.raises(ValueError, match="counts twice"):
        model.predict(data.astype(complex if kind is float else float))


@pytest.mark.parametrize("known", [True, False])
def test_another_operator_after_the_training_is_refused(known: bool, pairs: Any) -> None:
    images, data, A = pairs["real"]
    model = DirectInversion(A if known else None, trainer=trainer(1)).fit(images, data)
    before = model.predict(data)
    other = parallel_beam((12, 12), np.arange(6) * np.pi / 6, 17)
    with pytest.raises(ValueError, match="fit again"):
        model.set_params(operator=other).predict(data)
    assert_array_equal(model.set_params(operator=model.operator_).predict(data), before)


def test_huge_maps_are_announced(monkeypatch: Any) -> None:
    images, data = linear_pairs(4)
    DirectInversion(trainer=trainer(1)).fit(images, data)  # else no word
    monkeypatch.setattr(_direct, "_MANY", 12 * 9)
    DirectInversion(trainer=trainer(1)).fit(images, data)
    monkeypatch.setattr(_direct, "_MANY", 12 * 9 - 1)
    with pytest.warns(UserWarning, match=r"1\.1e\+02 weights"):
        DirectInversion(trainer=trainer(1)).fit(images, data)


# ------------------------------------------------------------------------------------ all of them
@either
@iterative
def test_the_last_stage_is_the_prediction(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    stages = list(model.staged_predict(data))
    assert len(stages) == 3
    assert_array_equal(stages[-1], model.predict(data))
    assert stages[-1].dtype == images.astype(data.dtype).dtype
    assert np.abs(stages[1] - stages[2]).max() > 1e-4


@either
@every
def test_training_comes_closer_to_the_images(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    errors = [
        np.square(
            np.abs(method(A, **SMALL[method], trainer=t).fit(images, data).predict(data) - images)
        ).mean()
        for t in (IDLE, trainer(12, lr=1e-2))
    ]
    assert errors[1] < 0.9 * errors[0]


@either
@every
def test_no_image_depends_on_its_companions(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    together = model.predict(data)
    crowd = data.copy()
    crowd[1:] *= 1e3
    alone = np.concatenate([model.predict(data[i : i + 1]) for i in range(3)])
    assert_allclose(alone, together[:3], atol=1e-9)
    assert_allclose(model.predict(crowd)[0], together[0], atol=1e-9)


@either
@every
def test_a_warm_start_continues(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer(4, lr=3e-3), warm_start=True).fit(images, data)
    before, first = model.predict(data), model.history_[0]["train_loss"]
    assert_array_equal(model.set_params(trainer=IDLE).fit(images, data).predict(data), before)
    model.set_params(trainer=trainer(1, lr=3e-3)).fit(images, data)
    assert model.history_[0]["train_loss"] < first
    assert np.abs(model.predict(data) - before).max() > 1e-6
    cold = model.set_params(warm_start=False, trainer=IDLE).fit(images, data).predict(data)
    assert np.abs(cold - before).max() > 1e-4


def test_a_warm_start_with_another_network_is_refused(pairs: Any) -> None:
    images, data, A = pairs["real"]
    model = LISTA(A, **SMALL[LISTA], trainer=IDLE, warm_start=True).fit(images, data)
    with pytest.raises(ValueError, match=r"warm_start: .*another network.*use warm_start=False"):
        model.set_params(kernel_size=5).fit(images, data)


@either
@every
def test_saved_and_loaded_predict_alike(method: Any, kind: str, pairs: Any, tmp_path: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    model.save(tmp_path / "model.skinverse")
    assert_array_equal(skinverse.load(tmp_path / "model.skinverse").predict(data), model.predict(data))


@pytest.mark.parametrize("lr", [1e3, 1e10])
@pytest.mark.parametrize("validation_fraction", [0.0, 0.3])
@every
def test_a_diverging_training_is_told_not_raised(method: Any, validation_fraction: float, lr: float) -> None:
    X = np.random.default_rng(0).normal(size=(6, 8, 8))
    wild = trainer(4, lr=lr, max_norm=None, validation_fraction=validation_fraction)
    model = method(**SMALL[method], trainer=wild)
    with pytest.warns(ConvergenceWarning, match="not finite"):
        model.fit(X, X)
    if validation_fraction:  # what came before is kept
        assert np.square(model.predict(X) - X).mean() < 1


@iterative
def test_complex_images_are_not_denoised_by_what_knows_real_ones(method: Any) -> None:
    X = np.random.default_rng(0).normal(size=(4, 6, 6))
    model = method(**SMALL[method], trainer=IDLE).fit(X, X)
    stacked = np.stack([X, X], axis=1)
    assert_allclose(model.predict(stacked)[:, 1], model.predict(X), atol=1e-12)  # one by one
    with pytest.raises(ValueError, match="a complex one counts twice"):
        model.predict(X + 1j * X)


@every
def test_pairs_are_needed(method: Any) -> None:
    with pytest.raises(ValueError, match="pairs"):
        method().fit(np.zeros((3, 4, 4)), np.zeros((2, 4, 4)))
