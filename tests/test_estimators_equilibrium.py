"""Deep equilibrium reconstruction: its derivative, its contraction, its theory, its training."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.autograd.functional import jvp, vjp
from torch.testing import assert_close

from skinverse import DeepEquilibriumRecon, Trainer
from skinverse.datasets import make_problem
from skinverse.estimators._equilibrium_maps import Equation, Equilibrium, EquilibriumLoss, unrolled
from skinverse.networks import DnCNN, GradientStepCNN
from skinverse.operators import as_torch, gaussian_blur, parallel_beam

TINY = Trainer(max_epochs=1, validation_fraction=0.0)
BRIEF = {
    "pretrainer": Trainer(max_epochs=60, lr=2e-3),
    "trainer": Trainer(max_epochs=4, lr=1e-3, max_norm=1.0),
}


@pytest.fixture(scope="module")
def blurred() -> tuple[np.ndarray, np.ndarray, Any]:
    return make_problem("deblurring", n_samples=16, size=24, random_state=0)


@pytest.fixture(scope="module")
def contractive(blurred) -> DeepEquilibriumRecon:
    images, data, A = blurred
    method = DeepEquilibriumRecon(A, iteration="contractive", tol=1e-5, max_steps=300, **BRIEF)
    return method.fit(images, data).set_params(tol=1e-8)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(network: type[nn.Module], seed: int = 0, **sizes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network(**sizes).double()


def small_problem(n: int, n_angles: int, *, seed: int = 0) -> tuple[Any, Tensor]:
    """Rays through n x n pixels, and data of three images."""
    A = parallel_beam((n, n), np.linspace(0, 3, n_angles), 2 * n, dtype="float64")
    return as_torch(A), draw(3, *A.dimsd, seed=seed)


def diagonal_problem(n: int) -> tuple[Any, Tensor]:
    """Without a null space, so that every map contracts."""
    return as_torch(pylops.Diagonal(np.linspace(0.6, 1, n * n).reshape(n, n))), draw(3, n, n, seed=1)


def module_for(iteration: str, seed: int = 0) -> Equilibrium:
    """Weights far from those of an identity, of a map that still contracts."""
    if iteration == "contractive":
        network: Any = seeded(GradientStepCNN, seed, n_features=8, n_layers=2)
    else:
        network = seeded(DnCNN, seed, n_features=8, n_layers=3)
        network.layers[-1].weight.data *= 3
    shrunk = 0.7 if iteration == "contractive" else None
    module = Equilibrium(network, 0.5, n_channels=1, shrunk=shrunk).double()
    module.unit.fill_(1.0)
    return module


def loss_of(iteration: str, backward: str, A: Any, data: Tensor, n: int, **changes: Any) -> EquilibriumLoss:
    settings = {"jacobian_weight": 0.0, "patch_size": None, "max_steps": 300, "tol": 1e-13} | changes
    equation, starts = Equation(A, iteration), torch.zeros(len(data), n, n, dtype=torch.float64)
    return EquilibriumLoss(equation, data, starts, solver="anderson", backward=backward, **settings)


# ------------------------------------------------------------------------------------------ derivatives
@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("iteration", ["proximal", "gradient", "admm", "contractive"])
def test_gradient_is_that_of_a_long_unroll(iteration: str, n_images: int, monkeypatch) -> None:
    import skinverse.estimators._equilibrium_maps as maps

    monkeypatch.setattr(maps, "_BACKWARD_STEPS", 100)
    monkeypatch.setattr(maps, "_BACKWARD_TOL", 1e-12)
    monkeypatch.setattr(maps, "_CG_TOL", 1e-14)
    A, data = diagonal_problem(5)
    data, images, members = data[:n_images], draw(n_images, 5, 5, seed=7), torch.arange(n_images)
    found = {}
    for backward in ("gmres", "anderson", "neumann", "unroll"):
        module = module_for(iteration)
        loss = loss_of(iteration, backward, A, data, 5)(module, images, members).sum()
        loss.backward()
        found[backward] = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    for backward in ("gmres", "anderson", "neumann"):
        assert found[backward].keys() == found["unroll"].keys()
        for name, gradient in found["unroll"].items():
            assert_close(found[backward][name], gradient, rtol=1e-6, atol=1e-9)


def test_jacobian_free_gradient_goes_downhill() -> None:
    A, data = diagonal_problem(5)
    images, members, found = draw(3, 5, 5, seed=7), torch.arange(3), []
    for backward in ("gmres", "jacobian_free"):
        module = module_for("proximal")
        loss_of("proximal", backward, A, data, 5)(module, images, members).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in module.network.parameters()]))
    exact, free = found
    assert exact @ free > 0.3 * exact.norm() * free.norm()


def test_memory_does_not_grow_with_the_steps() -> None:
    A, data = diagonal_problem(5)
    images, members, held = draw(3, 5, 5, seed=7), torch.arange(3), []

    def note(x: Tensor) -> Tensor:
        held[-1] += x.numel()
        return x

    for max_steps in (3, 60):
        held.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss_of("proximal", "gmres", A, data, 5, max_steps=max_steps)(
                module_for("proximal"), images, members
            )
    assert held[0] == held[1] > 0


def test_jacobian_penalty_is_the_size_of_the_jacobian() -> None:
    A, data = diagonal_problem(3)
    images, members, module = draw(1, 3, 3), torch.zeros(1500, dtype=torch.int64), module_for("proximal")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, penalised = (
            loss_of("proximal", "jacobian_free", A, data, 3, jacobian_weight=w)(
                module, images.expand(1500, 3, 3), members
            )
            for w in (0.0, 1.0)
        )
    equation = Equation(A, "proximal")
    f, b = equation.map(module, images), equation.pulled(data[:1], images, module.unit)
    z = unrolled(f, torch.zeros_like(images), b, 300).x.detach()
    J = torch.autograd.functional.jacobian(lambda z: f(z, b), z).reshape(9, 9)
    assert (penalised - plain).mean().item() == pytest.approx((J.square().sum() / 9).item(), rel=0.07)


# ------------------------------------------------------------------------------------------ contraction
@given(
    st.integers(0, 100),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.floats(1e-3, 1e3),
    st.floats(0, 0.99),
    st.integers(1, 8),
    st.sampled_from(["C1", "D4"]),
)
def test_contraction_is_proven(
    seed: int, scale: float, lam: float, c: float, n_angles: int, group: str
) -> None:
    network = seeded(GradientStepCNN, seed, n_features=8, n_layers=2, group=group)
    for p in network.parameters():
        p.data = scale * draw(*p.shape, seed=seed)
    module = Equilibrium(network, lam, n_channels=1, shrunk=c).double()
    module.unit.fill_(1.0)
    A, data = small_problem(4, n_angles, seed=seed)
    equation, z = Equation(A, "contractive"), draw(3, 4, 4, seed=seed + 5)
    f, b = equation.map(module, z), equation.pulled(data, z, module.unit)
    factor = module.contraction()
    assert factor is not None and factor < 1
    v = draw(3, 4, 4, seed=seed + 6)
    for _ in range(15):
        push = jvp(lambda z: f(z, b), z, v / v.norm())[1]
        assert push.norm() <= factor * (1 + 1e-9)
        v = vjp(lambda z: f(z, b), z, push)[1]
        if not v.any():
            break
    near = z + draw(3, 4, 4, seed=seed + 7)
    assert (f(near, b) - f(z, b)).norm() <= factor * (near - z).norm() * (1 + 1e-9)


def test_the_fixed_point_solves_the_equilibrium_equation(contractive, blurred) -> None:
    _, data, A = blurred
    x = torch.from_numpy(contractive.predict(data.astype(np.float64)))
    module, equation = contractive.module_.double(), Equation(as_torch(A), "contractive")
    z, unit = x / module.unit, module.unit
    misfit = equation.normal(z) - equation.pulled(torch.from_numpy(data.astype(np.float64)), x, unit)
    with torch.no_grad():
        rest = misfit + contractive.lam_ * (z - module.denoiser()(z))
    contractive.module_.float()
    assert rest.norm() < 1e-4 * misfit.norm()


def test_reconstructions_depend_on_the_data_as_the_proof_says(contractive, blurred) -> None:
    """``lam (1 - c) ||x - x'|| <= ||A|| ||y - y'||``, since ``A^* A + lam G`` is so strongly monotone."""
    _, data, A = blurred
    y = data[:3].astype(np.float64)
    noise = np.random.default_rng(0).normal(size=y.shape)
    bound = as_torch(A).norm() / (contractive.lam_ * (1 - contractive.lipschitz)) / as_torch(A).norm() ** 2
    moved = [
        np.linalg.norm(contractive.predict(y + t * noise) - contractive.predict(y))
        for t in (1e-1, 1e-2, 1e-3)
    ]
    for t, distance in zip((1e-1, 1e-2, 1e-3), moved, strict=True):
        assert distance <= bound * t * np.linalg.norm(noise) + 1e-3
    assert moved[0] > 3 * moved[1] > 9 * moved[2]


def test_noise_and_weight_to_zero_together_find_the_solution(contractive, blurred) -> None:
    """Consistency: as weight and noise vanish, the noise faster, ``x`` tends to what solves ``A x = y``."""
    images = blurred[0][:3].astype(np.float64)
    rng = np.random.default_rng(1)
    blur = gaussian_blur(images.shape[1:], 1.0)
    A = 0.5 * blur + 0.5 * pylops.Identity(images.shape[1:])  # one solution: the images
    exact, errors = as_torch(A)(torch.from_numpy(images)).numpy(), []
    for lam in (1e-1, 1e-2, 1e-3):
        method = DeepEquilibriumRecon(
            A, iteration="contractive", lam=lam, pretraining=False, max_steps=3000, tol=1e-4, trainer=TINY
        )
        method.fit(images, exact)
        method.module_.network.load_state_dict(contractive.module_.network.state_dict())
        x = method.set_params(tol=1e-10).predict(exact + lam**1.5 * rng.normal(size=exact.shape))
        errors.append(np.linalg.norm(x - images) / np.linalg.norm(images))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3


def test_every_start_and_solver_finds_the_same_image(contractive, blurred) -> None:
    _, data, _ = blurred
    y, reference = data[:2].astype(np.float64), contractive.predict(data[:2].astype(np.float64))
    for solver in ("picard", "broyden"):
        contractive.set_params(solver=solver, max_steps=5000)
        assert_allclose(contractive.predict(y), reference, atol=2e-3)
    contractive.set_params(solver="anderson", max_steps=300)


# ------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("iteration", ["proximal", "gradient", "admm", "contractive"])
def test_training_helps(blurred, iteration: str) -> None:
    images, data, A = blurred
    start = DeepEquilibriumRecon(A, iteration=iteration, pretraining=False, trainer=TINY)
    trained = DeepEquilibriumRecon(A, iteration=iteration, tol=1e-4, **BRIEF)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # untrained maps need not contract
        before = start.fit(images, data).score(images, data)
    assert trained.fit(images, data).score(images, data) > before
    assert {epoch["phase"] for epoch in trained.history_} == {"pretraining", "equilibrium"}


def test_more_steps_only_come_closer(contractive, blurred) -> None:
    _, data, _ = blurred
    y = data[:3].astype(np.float64)
    contractive.set_params(solver="picard", tol=0.0)
    limit = contractive.set_params(max_steps=400).predict
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference = limit(y)
        distances = [
            np.linalg.norm(contractive.set_params(max_steps=k).predict(y) - reference) for k in (2, 10, 50)
        ]
    contractive.set_params(solver="anderson", tol=1e-8, max_steps=300)
    assert distances[0] > distances[1] > distances[2]


def test_the_unrolled_twin_takes_its_steps_and_says_so(blurred) -> None:
    images, data, A = blurred
    twin = DeepEquilibriumRecon(A, backward="unroll", max_steps=4, **BRIEF).fit(images, data)
    _, info = twin.predict(data, return_info=True)
    assert (info.n_steps == 4).all() and info.converged.all()
    assert not np.allclose(
        twin.set_params(max_steps=8).predict(data), twin.set_params(max_steps=4).predict(data)
    )


@pytest.mark.parametrize("network", ["dncnn_d4", "gradient_step_d4"])
def test_denoising_commutes_with_turns_and_flips(network: str) -> None:
    images, data, A = make_problem("denoising", n_samples=6, size=16, noise=0.2, random_state=0)
    method = DeepEquilibriumRecon(network=network, **BRIEF).fit(images, data).set_params(tol=1e-10)
    y = data.astype(np.float64)[:, :12]
    turned = np.ascontiguousarray(np.rot90(y, 1, (1, 2)))
    flipped = np.ascontiguousarray(y[:, ::-1])
    assert_allclose(method.predict(turned), np.rot90(method.predict(y), 1, (1, 2)), atol=1e-8)
    assert_allclose(method.predict(flipped), method.predict(y)[:, ::-1], atol=1e-8)


def test_weight_is_learned_or_held(blurred) -> None:
    images, data, A = blurred
    settings = {"iteration": "contractive", "trainer": Trainer(max_epochs=3, lr=1e-2)}
    assert DeepEquilibriumRecon(A, lam=0.3, **settings).fit(images, data).lam_ == pytest.approx(0.3)
    learned = DeepEquilibriumRecon(A, **settings).fit(images, data)
    assert learned.contraction_ == pytest.approx(1 - learned.eta_ * learned.lam_ * 0.05)


def test_complex_images_are_two_channels() -> None:
    images, data, A = make_problem("mri", n_samples=4, size=16, random_state=0)
    method = DeepEquilibriumRecon(A, iteration="contractive", trainer=TINY).fit(images.astype(complex), data)
    assert method.predict(data).dtype.kind == "c"
    assert method.fit(images.real, data).predict(data).dtype.kind == "f"


# ------------------------------------------------------------------------------------------ bad input
class Growing(nn.Module):
    """Expands by a half, and has nothing to learn that would help."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + 1


def test_what_does_not_contract_is_told_and_finite(blurred) -> None:
    images, data, _ = blurred
    blind = pylops.Diagonal(np.zeros((24, 24)))
    method = DeepEquilibriumRecon(blind, network=Growing(), pretraining=False, solver="picard", trainer=TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        method.fit(images, 0 * data)
    with pytest.warns(ConvergenceWarning, match="16 of 16 images"):
        x = method.predict(0 * data + 1)
    assert np.abs(x).max() < 10  # not what it exploded to


def test_maps_without_numbers_end_the_training(blurred) -> None:
    images, data, A = blurred
    trainer = Trainer(max_epochs=4, lr=1e6, validation_fraction=0.0)
    method = DeepEquilibriumRecon(A, pretraining=False, trainer=trainer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        method.fit(images, data)
    assert any("not finite; the last good weights are kept" in str(one.message) for one in told)
    assert all(torch.isfinite(p).all() for p in method.module_.parameters())


def test_a_changed_method_is_fitted_again(contractive, blurred) -> None:
    for name, value in {"iteration": "proximal", "lam": 0.3, "lipschitz": 0.1}.items():
        known = getattr(contractive, name)
        with pytest.raises(ValueError, match=f"{name}=.* when fitted.*fit again"):
            contractive.set_params(**{name: value}).predict(blurred[1])
        contractive.set_params(**{name: known})
    with pytest.raises(ValueError, match="solver: expected one of"):
        contractive.set_params(solver="newton").predict(blurred[1])
    contractive.set_params(solver="anderson")


def test_a_new_weight_is_trained_with_from_a_warm_start(blurred) -> None:
    images, data, A = blurred
    method = DeepEquilibriumRecon(A, iteration="contractive", trainer=TINY).fit(images, data)
    method.set_params(lam=2.0, warm_start=True).fit(images, data)
    assert method.lam_ == pytest.approx(2.0) and method.contraction_ == pytest.approx(1 - 2 / 3 * 0.05)
    assert {epoch["phase"] for epoch in method.history_} == {"equilibrium"}


def test_modules_are_trained_once_with_memory(blurred, tmp_path) -> None:
    images, data, A = blurred
    network = seeded(GradientStepCNN, n_features=8).float()
    settings = {"iteration": "contractive", "network": network, "trainer": TINY, "memory": str(tmp_path)}
    first = DeepEquilibriumRecon(A, **settings).fit(images, data)
    assert (
        DeepEquilibriumRecon(A, **settings).fit(images, data).history_ == first.history_
    )  # with its seconds


def test_denoising_takes_pairs_of_one_kind() -> None:
    images, data, _ = make_problem("denoising", n_samples=4, size=8, random_state=0)
    with pytest.raises(ValueError, match="one kind, got real X_true and complex Y_meas"):
        DeepEquilibriumRecon().fit(images, data + 1j)


@pytest.mark.parametrize("network", ["dncnn", "dncnn_d4", "unet", nn.Identity()])
def test_contraction_takes_a_certificate(blurred, network: Any) -> None:
    images, data, A = blurred
    with pytest.raises(ValueError, match="proven Lipschitz constant.*gradient_step"):
        DeepEquilibriumRecon(A, iteration="contractive", network=network).fit(images, data)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"iteration": "newton"}, "iteration: expected one of"),
        ({"network": "resnet"}, "network: expected one of"),
        ({"solver": "newton"}, "solver: expected one of"),
        ({"backward": "hook"}, "backward: expected one of"),
        ({"lipschitz": 1.0}, r"lipschitz: expected a number in \[0, 1\), got 1.0"),
        ({"jacobian_weight": -1.0}, "jacobian_weight: expected a number >= 0"),
        ({"lam": -1.0}, "lam"),
        ({"lam": 0.0, "iteration": "admm"}, "lam: expected a number > 0"),
        ({"trainer": Trainer(max_norm=-1.0)}, "max_norm: expected a number > 0"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_bad_parameters_are_named(blurred, parameters: dict[str, Any], message: str) -> None:
    images, data, A = blurred
    with pytest.raises(ValueError, match=message):
        DeepEquilibriumRecon(A, **parameters).fit(images, data)
