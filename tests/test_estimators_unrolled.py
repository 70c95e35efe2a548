"""Learned gradient descent and learned primal-dual: their parts, their scales, their training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.testing import assert_close

import skinverse
from skinverse import LearnedGradientDescent, LearnedPrimalDual, TotalVariationRecon, Trainer
from skinverse.datasets import make_ellipses, make_problem
from skinverse.estimators._iterations import Scaled
from skinverse.estimators._unrolled_networks import GradientUnrolled, PrimalDualUnrolled, Update, rough
from skinverse.metrics import psnr
from skinverse.operators import as_torch, fourier_sampling, parallel_beam

METHODS = (LearnedGradientDescent, LearnedPrimalDual)
every = pytest.mark.parametrize("method", METHODS)
TINY: dict[str, Any] = {"n_iterations": 3, "n_features": 8, "n_memory": 2}
BRIEF = Trainer(max_epochs=80, lr=3e-3, max_norm=1.0, validation_fraction=0.0)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """Networks that a test makes itself draw their weights here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def tomography() -> tuple[np.ndarray, np.ndarray, Any]:
    operator = parallel_beam((16, 16), np.arange(8) * np.pi / 8, 23)
    images = make_ellipses(48, 16, random_state=0)
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    noise = 0.02 * np.abs(exact).mean() * np.random.default_rng(1).normal(size=exact.shape)
    return images, (exact + noise).astype(np.float32), operator


# ------------------------------------------------------------------------------------------ parts
def test_primal_dual_has_as_many_weights_as_published() -> None:
    network = PrimalDualUnrolled((1, 1), 10, 32, 5, shared=False)
    assert sum(p.numel() for p in network.parameters()) == 253_220


@pytest.mark.parametrize("make", [GradientUnrolled, PrimalDualUnrolled])
def test_shared_weights_are_those_of_one_iteration(make: Any) -> None:
    counts = [sum(p.numel() for p in make((1, 1), 4, 8, 2, shared=s).parameters()) for s in (True, False)]
    assert counts[1] == 4 * counts[0]


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (1, 2, 1, 6), (1, 1, 1, 1)])
def test_roughness_is_the_gradient_of_squared_differences(shape: tuple[int, ...]) -> None:
    x = random(*shape).requires_grad_()
    energy = sum(0.5 * x.diff(dim=axis).square().sum() for axis in (-2, -1))
    (expected,) = torch.autograd.grad(energy, x)
    assert_close(rough(x.detach()), expected)


def test_scaled_products_have_norm_one_and_are_adjoint() -> None:
    mask = np.random.default_rng(0).random((6, 5)) < 0.5
    A = as_torch(7.0 * fourier_sampling(mask))
    data, start = random(2, *A.dimsd, dtype=torch.complex128), random(2, 6, 5, dtype=torch.complex128)
    problem = Scaled(A, data, start, torch.tensor(2.0))
    x, y = random(2, 2, 6, 5, seed=1), random(*problem.data.shape, seed=2)
    assert_close((problem.forward(x) * y).sum(), (x * problem.adjoint(y)).sum())
    seen = x
    for _ in range(30):
        seen = problem.adjoint(problem.forward(seen))
        seen = seen / seen.norm()
    assert float(problem.forward(seen).norm()) == pytest.approx(1.0, abs=2e-3)


def test_an_update_of_zeros_is_zero() -> None:
    assert_array_equal(Update(3, 2, 4)(torch.zeros(1, 3, 5, 5)).detach().numpy(), np.zeros((1, 2, 5, 5)))


@pytest.mark.parametrize("make", [GradientUnrolled, PrimalDualUnrolled])
def test_weights_have_exact_derivatives(make: Any) -> None:
    network = make((1, 1), 2, 4, 2, shared=False).double()
    network.unit.fill_(1.0)
    A = as_torch(parallel_beam((5, 5), np.arange(3), 7))
    x = random(2, 5, 5)
    y, start = A(x), random(2, 5, 5, seed=1)

    def loss() -> Tensor:
        return (network(A, y, start) - x).square().sum()

    loss().backward()
    directions = [random(*p.shape, seed=i) for i, p in enumerate(network.parameters())]
    slope = sum((p.grad * d).sum() for p, d in zip(network.parameters(), directions, strict=True))
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(network.parameters(), directions, strict=True):
                p.add_(step * d)
            values.append(loss())
            for p, d in zip(network.parameters(), directions, strict=True):
                p.sub_(step * d)
    assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------ methods
@every
def test_pairs_are_learned_and_the_last_stage_is_the_prediction(method: Any, tomography: Any) -> None:
    images, data, A = (part[:16] if isinstance(part, np.ndarray) else part for part in tomography)
    model = method(A, **TINY, trainer=BRIEF).fit(images, data)
    *_, last = stages = list(model.staged_predict(data))
    assert len(stages) == 3
    assert_array_equal(last, model.predict(data))
    start = as_torch(A).filtered_adjoint(torch.from_numpy(data)).numpy()
    assert psnr(images, last).mean() > psnr(images, start).mean() + 1


@every
def test_the_units_of_operator_and_images_play_no_part(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    trainer = Trainer(max_epochs=2, validation_fraction=0.0)
    plain = method(A, **TINY, trainer=trainer).fit(images[:8], data[:8]).predict(data[8:12])
    scaled = method(50.0 * A, **TINY, trainer=trainer).fit(20 * images[:8], 1000 * data[:8])
    assert_allclose(scaled.predict(1000 * data[8:12]) / 20, plain, atol=2e-3 * np.abs(plain).max())


@every
def test_bounds_hold_in_every_stage(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    model = method(A, **TINY, trainer=Trainer(max_epochs=1)).fit(images, data)
    free = model.predict(data)
    assert free.min() < 0
    for x in model.set_params(bounds=(0, None)).staged_predict(data):
        assert x.min() >= 0
    assert_array_equal(model.predict(data), free.clip(0, None))


@every
def test_another_operator_and_size_need_no_training(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    model = method(A, **TINY, trainer=Trainer(max_epochs=2)).fit(images, data)
    other = parallel_beam((20, 24), np.arange(12) * np.pi / 12, 33)
    X = make_ellipses(2, 24, random_state=5)[:, 2:22]
    Y = as_torch(other)(torch.from_numpy(np.ascontiguousarray(X))).numpy()
    x = model.set_params(operator=other).predict(Y)
    assert psnr(X, x).mean() > psnr(X, np.zeros_like(X)).mean() + 3


@every
def test_other_channels_are_refused(method: Any) -> None:
    images, data, A = make_problem("mri", n_samples=4, size=16, random_state=0)
    model = method(A, **TINY, trainer=Trainer(max_epochs=1)).fit(images, data)
    other = parallel_beam((16, 16), np.arange(4), 23)
    with pytest.raises(ValueError, match=r"images of 2 and data of .* got"):
        model.set_params(operator=other).predict(np.zeros((1, 4, 23)))


@every
@pytest.mark.parametrize(
    ("changed", "named"), [({"n_iterations": 0}, "n_iterations"), ({"n_memory": 0}, "n_memory")]
)
def test_numbers_that_make_no_network_are_refused(method: Any, changed: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        method(**changed).fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


@every
def test_pairs_are_needed(method: Any) -> None:
    with pytest.raises(ValueError, match="pairs"):
        method().fit(np.zeros((3, 4, 4)), np.zeros((2, 4, 4)))


@every
def test_iterations_may_start_from_any_reconstruction(method: Any, tomography: Any, tmp_path: Any) -> None:
    images, data, A = tomography
    initial = TotalVariationRecon(lam=0.01)
    model = method(A, initial=initial, **TINY, trainer=Trainer(max_epochs=1)).fit(images[:8], data[:8])
    smooth = TotalVariationRecon(A, lam=0.01).fit()
    start = model._start(as_torch(A), torch.from_numpy(data)).numpy()
    assert_array_equal(start, smooth.predict(data))
    assert not hasattr(initial, "operator_")
    plain = method(A, **TINY, trainer=Trainer(max_epochs=1)).fit(images[:8], data[:8])
    assert np.abs(model.predict(data) - plain.predict(data)).max() > 1e-3
    model.save(tmp_path / "model")
    assert_array_equal(skinverse.load(tmp_path / "model").predict(data), model.predict(data))
    other = parallel_beam((16, 16), np.arange(6) * np.pi / 6, 23)
    seen = as_torch(other)(torch.from_numpy(images)).numpy()
    assert model.set_params(operator=other).predict(seen).shape == images.shape


@every
def test_the_number_of_iterations_is_fixed_by_the_training(
    method: Any, tomography: Any, tmp_path: Any
) -> None:
    images, data, A = tomography
    model = method(A, **TINY, trainer=Trainer(max_epochs=1)).fit(images[:8], data[:8])
    with pytest.raises(ValueError, match="n_iterations: learned with 3, got 2: fit again"):
        model.set_params(n_iterations=2).predict(data[:2])
    if method is LearnedGradientDescent:  # whose weights fit any number
        model.save(tmp_path / "model")
        with pytest.raises(ValueError, match="n_iterations: learned with 3"):
            skinverse.load(tmp_path / "model").predict(data[:2])


@every
def test_a_diverging_training_leaves_weights_that_predict(method: Any) -> None:
    X = np.random.default_rng(0).normal(size=(6, 8, 8))
    with pytest.warns(ConvergenceWarning, match="last good weights are kept"):
        model = method(n_iterations=2, trainer=Trainer(max_epochs=4, lr=1e6, validation_fraction=0.0))
        model.fit(X, X)
    assert np.isfinite(model.predict(X)).all()


@every
def test_complex_images_have_no_bounds(method: Any) -> None:
    X = np.ones((2, 4, 4), complex)
    with pytest.raises(ValueError, match="bounds: complex images"):
        method(bounds=(0, None)).fit(X, X)


@every
def test_untrained_iterations_return_what_they_start_from(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    idle = Trainer(max_epochs=1, lr=0.0, validation_fraction=0.0)
    model = method(A, **TINY, trainer=idle).fit(images[:4], data[:4])
    start = model._start(as_torch(A), torch.from_numpy(data[:2])).numpy()
    for x in model.staged_predict(data[:2]):
        assert_allclose(x, start, atol=1e-6)
