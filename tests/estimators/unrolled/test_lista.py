"""LISTA: the iteration that it begins as, in theory, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Lasso
from torch import Tensor
from torch.testing import assert_close

import skinverse
from skinverse import LISTA, Trainer
from skinverse.estimators.unrolled.lista import Convolutional, Dense, cosines, soft
from skinverse.operators import as_torch, fourier_sampling, parallel_beam

# Learns next to nothing, but finds unit and level.
IDLE = Trainer(max_epochs=1, lr=1e-30, validation_fraction=0.0)
either = pytest.mark.parametrize("kind", ["real", "complex"])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


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


# ------------------------------------------------------------------------- LISTA: the dictionaries
def cosine_waves(n: int) -> np.ndarray:
    """Orthonormal cosines of ``n`` points, a row for each frequency."""
    u, a = np.arange(n)[:, None], np.arange(n)
    return np.sqrt(np.where(u == 0, 1, 2) / n) * np.cos(np.pi * (a + 0.5) * u / n)


def cosine_images(channels: int, height: int, width: int) -> np.ndarray:
    waves = np.kron(cosine_waves(height), cosine_waves(width))
    return np.kron(np.eye(channels), waves).reshape(-1, channels, height, width)


def frame(atoms: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each atom centred at each pixel, with what is outside mirrored: the matrix ``D``, codes to pixels."""
    n, c, k, _ = atoms.shape
    pixel = np.pad(np.arange(height * width).reshape(height, width), k // 2, mode="symmetric")
    columns = []
    for atom in atoms:
        for i in range(height):
            for j in range(width):
                image = np.zeros((c, height * width))
                for channel in range(c):
                    np.add.at(image[channel], pixel[i : i + k, j : j + k], atom[channel])
                columns.append(image.ravel())
    return np.stack(columns, axis=1)


def untrained(A: pylops.LinearOperator, **parameters: Any) -> Any:
    """The iterations as they begin, for images of spread one, computed in double precision."""
    dtype = torch.complex128 if np.issubdtype(A.dtype, np.complexfloating) else torch.float64
    x = random(2, *A.dims, dtype=dtype).numpy()
    module = LISTA(A, trainer=IDLE, **parameters).fit(x, np.stack([A @ one for one in x])).module_.double()
    return module


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 6), (2, 3, 4), (1, 5, 2)])
def test_cosines_are_orthonormal(shape: tuple[int, int, int]) -> None:
    n = int(np.prod(shape))
    found = cosines(*shape).numpy()
    assert_allclose(found, cosine_images(*shape), atol=1e-13)
    assert_allclose(found.reshape(n, n) @ found.reshape(n, n).T, np.eye(n), atol=1e-13)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 4), (9, 8)])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@either
def test_the_convolutional_cosines_are_a_parseval_frame(
    kind: str, kernel_size: int, size: tuple[int, int]
) -> None:
    A = pylops.Identity(size, dtype="float64" if kind == "real" else "complex128")
    module = untrained(A, kernel_size=kernel_size)
    x, D = random(2, module.n_channels[0], *size), module.size * module.synthesis[0]
    z = module.analyse(x, D)
    assert_close(module.synthesise(z, D), x, atol=1e-6, rtol=0)  # the atoms are in single precision
    assert_close(z.square().sum(), x.square().sum(), atol=0, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
@pytest.mark.parametrize("make", [Convolutional, Dense])
def test_analysis_is_the_adjoint_of_synthesis_for_all_atoms(make: Any, size: tuple[int, int]) -> None:
    atoms = random(5, 2, 3, 3) if make is Convolutional else random(5, 2, *size)
    module = make((2, 2), 1, atoms, 1, tied=True)
    x = random(2, 2, *size, seed=1)
    analysed = module.analyse(x, atoms)
    z = random(*analysed.shape, seed=2)
    assert_close((analysed * z).sum(), (x * module.synthesise(z, atoms)).sum())


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
        assert_allclose(flat_channels(x.detach()), z @ D.T, atol=1e-5)  # the atoms are in single precision
    assert 0 < (z == 0).mean() < 1


@pytest.mark.parametrize("name", ["convolutional", "eye", "own"])
@either
def test_the_objective_falls_in_each_step(kind: str, name: str, monkeypatch: Any) -> None:
    A = small_operator(kind)
    asked, D = dictionaries(kind)[name]
    module = untrained(A, dictionary=asked, n_iterations=30, kernel_size=3)
    codes, synthesise = [], module.synthesise

    def recorded(z: Tensor, atoms: Tensor) -> Tensor:
        codes.append(z.detach().flatten(1).numpy())
        return synthesise(z, atoms)

    monkeypatch.setattr(module, "synthesise", recorded)
    data, start = batch(A)
    module(as_torch(A), data, start)
    norm = as_torch(A).norm()
    M, y, theta = dense_matrix(A) / norm, flat_channels(data) / norm, thresholds(D, name, kind)
    values = [0.5 * np.square(z @ D.T @ M.T - y).sum(1) + np.abs(z) @ theta for z in codes]
    assert (np.diff(values, axis=0) <= 1e-7).all()
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
    quick = Trainer(max_epochs=20, batch_size=50, lr=5e-2, final_lr=5e-3, validation_fraction=0.0)
    learned = LISTA(A, **given, trainer=quick).fit(signals, data)
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
        (3, ValueError, "dictionary: expected one of .* or an array of atoms, got 3"),
        (np.array(3.0), ValueError, "dictionary: expected a batch"),
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
    model = LISTA(A, dictionary=np.eye(40), n_iterations=2, trainer=Trainer(max_epochs=2)).fit(signals, data)
    model.save(tmp_path / "lista.skinverse")
    loaded = skinverse.load(tmp_path / "lista.skinverse")
    assert_array_equal(loaded.predict(data), model.predict(data))
    assert_array_equal(loaded.dictionary, np.eye(40))
