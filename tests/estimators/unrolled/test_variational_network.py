"""The variational network: its splines and filters, and the descent that it is."""

from __future__ import annotations

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import make_interp_spline
from scipy.ndimage import correlate
from torch import Tensor
from torch.testing import assert_close

from skinverse import Trainer, VariationalNetwork
from skinverse.datasets import make_ellipses
from skinverse.estimators.unrolled.variational_network import RANGE, Experts, Spline, centred
from skinverse.metrics import psnr
from skinverse.operators import as_torch, fourier_sampling, parallel_beam

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


@pytest.mark.parametrize("n_knots", [2, 3, 8])
def test_splines_are_linear_between_knots_and_constant_beyond(n_knots: int) -> None:
    knots, values = np.linspace(-RANGE, RANGE, n_knots), random(3, n_knots)
    t = torch.cat([2 * random(2, 3, 4, 5), 50 * random(2, 3, 4, 5, seed=1)], -1)
    t.view(-1)[:n_knots] = torch.from_numpy(knots)
    found = Spline.apply(t, values)
    for i in range(3):
        assert_allclose(found[:, i], np.interp(t[:, i], knots, values[i]), atol=1e-12)
    ends = Spline.apply(torch.tensor([-1e6, 1e6], dtype=torch.float64).expand(1, 3, 1, 2), values)
    assert_close(ends[0, :, 0], values[:, [0, -1]])


@pytest.mark.parametrize("n_knots", [2, 5])
def test_splines_have_exact_derivatives(n_knots: int) -> None:
    spacing = 2 * RANGE / (n_knots - 1)
    generator = torch.Generator().manual_seed(3)
    pieces = torch.randint(-2, n_knots + 1, (2, 3, 2, 4), generator=generator)  # some are beyond the ends
    inside = 0.1 + 0.8 * torch.rand(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    t = (-RANGE + spacing * (pieces + inside)).requires_grad_()
    assert (t.abs() > RANGE).any() and (t.abs() < RANGE).any()
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
    module.log_lam.data.fill_(-1e4)
    module.slopes.data = random(1, 3, 9, seed=4)
    K = centred(module.filters[0]).detach().numpy()
    knots = np.linspace(-RANGE, RANGE, 9)
    potentials = [make_interp_spline(knots, v, k=1).antiderivative() for v in module.slopes[0].detach()]

    def energy(x: np.ndarray) -> float:
        responses = [sum(correlate(x[c], k[c], mode="reflect") for c in (0, 1)) for k in K]
        return float(sum(phi(r).sum() for phi, r in zip(potentials, responses, strict=True)))

    x, d = (0.3 * random(2, 6, 4, seed=s).numpy() for s in (5, 6))
    A = pylops.Identity((6, 4), dtype="complex128")
    start = torch.from_numpy(x[0] + 1j * x[1])[None]
    step = start - module(as_torch(A), torch.zeros_like(start), start).detach()
    slope = (np.stack([step[0].real, step[0].imag]) * d).sum()
    assert slope == pytest.approx((energy(x + 1e-6 * d) - energy(x - 1e-6 * d)) / 2e-6, rel=1e-6)


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
    trainer = Trainer(max_epochs=30, lr=1e-2, final_lr=1e-2, validation_fraction=0.0)
    model = VariationalNetwork(A, n_iterations=4, n_filters=8, kernel_size=5, trainer=trainer)
    found = model.fit(images[:32], data[:32]).predict(data[32:])
    assert np.iscomplexobj(found)
    truth = images[32:]
    zero_filled = np.stack([A.H @ y for y in data[32:]])
    start = as_torch(A).filtered_adjoint(torch.from_numpy(data[32:])).numpy()
    quality = psnr(truth, found).mean()
    assert quality > psnr(truth, zero_filled).mean() + 3
    assert quality > psnr(truth, start).mean() + 3


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kernel_size": 4}, "kernel_size: expected an odd number >= 3, got 4"),
        ({"kernel_size": 1}, "kernel_size"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"n_knots": 1}, "n_knots: expected a whole number >= 2, got 1"),
        ({"n_knots": 0}, "n_knots"),
        ({"n_filters": 0}, "n_filters"),
    ],
)
def test_numbers_that_make_no_variational_network_are_refused(changed: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VariationalNetwork(**changed).fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))
