"""Deep equilibrium reconstruction: its derivative, its contraction, its theory, its training."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.autograd.functional import jvp, vjp
from torch.testing import assert_close

import skinverse
from skinverse import DeepEquilibriumRecon, Trainer
from skinverse.datasets import make_problem
from skinverse.estimators.equilibrium import equation as equations
from skinverse.estimators.equilibrium import maps
from skinverse.estimators.equilibrium.equation import Equation, solve
from skinverse.estimators.equilibrium.losses import jacobian_size
from skinverse.estimators.equilibrium.module import Equilibrium
from skinverse.networks import DnCNN, GradientStepCNN
from skinverse.operators import as_torch, gaussian_blur, parallel_beam

ITERATIONS = ("proximal", "gradient", "admm", "contractive")
ONCE = Trainer(max_epochs=1, validation_fraction=0.0)
TINY: dict[str, Any] = {"trainer": ONCE, "pretrainer": ONCE}
BRIEF: dict[str, Any] = {
    "pretrainer": Trainer(max_epochs=30, lr=2e-3),
    "trainer": Trainer(max_epochs=4, lr=1e-3, max_grad_norm=1.0),
}


@pytest.fixture(scope="module")
def blurred() -> tuple[np.ndarray, np.ndarray, Any]:
    return make_problem("deblurring", n_samples=16, size=24, random_state=0)


@pytest.fixture(scope="module")
def contractive(blurred) -> DeepEquilibriumRecon:
    images, data, A = blurred
    method = DeepEquilibriumRecon(A, iteration="contractive", tol=1e-4, max_steps=300, **BRIEF)
    return method.fit(images, data).set_params(tol=1e-8)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(network: type[nn.Module], seed: int = 0, **sizes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network(**sizes)


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
    lipschitz = 0.7 if iteration == "contractive" else None
    module = Equilibrium(network, iteration, n_channels=1, lam=0.5, lipschitz=lipschitz).double()
    return module


def solved(
    module: Equilibrium,
    A: Any,
    data: Tensor,
    backward: str,
    max_steps: int = 300,
    weights: Tensor | None = None,
) -> Tensor:
    """Images that the module reconstructs from zero, with their derivative."""
    equation = Equation(module, A, data, torch.zeros_like(data), weights=weights)
    found = solve(equation, equation.z0, solver="anderson", backward=backward, max_steps=max_steps, tol=1e-13)
    return equation.image(found.x)


# ------------------------------------------------------------------------------------------ derivatives
@pytest.mark.parametrize(("n_images", "weighted"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("iteration", ITERATIONS)
def test_gradient_is_that_of_a_long_unroll(
    iteration: str, n_images: int, weighted: bool, monkeypatch
) -> None:
    monkeypatch.setattr(equations, "_BACKWARD_STEPS", 100)
    monkeypatch.setattr(equations, "_BACKWARD_TOL", 1e-12)
    monkeypatch.setattr(maps, "_CG_TOL", 1e-14)
    A, data = diagonal_problem(5)
    data, images = data[:n_images], draw(n_images, 5, 5, seed=7)
    weights = torch.linspace(0.9, 1, data.numel()).double().view(data.shape) if weighted else None
    gradients = {}
    for backward in ("gmres", "anderson", "neumann", "unroll"):
        module = module_for(iteration)
        (solved(module, A, data, backward, weights=weights) - images).square().sum().backward()
        gradients[backward] = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    for backward in ("gmres", "anderson", "neumann"):
        assert gradients[backward].keys() == gradients["unroll"].keys()
        for name, gradient in gradients["unroll"].items():
            assert_close(gradients[backward][name], gradient, rtol=1e-6, atol=1e-9)


def test_jacobian_free_gradient_is_that_of_one_step_and_goes_downhill() -> None:
    A, data = diagonal_problem(5)
    images, gradients = draw(3, 5, 5, seed=7), []
    for backward in ("gmres", "jacobian_free", "one step"):
        module = module_for("proximal")
        x = solved(module, A, data, backward.replace("one step", "gmres"))
        if backward == "one step":
            equation = Equation(module, A, data, images)
            x = equation.f(x.detach(), *equation.given)
        (x - images).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.network.parameters()]))
    exact, free, one_step = gradients
    assert_close(free, one_step, rtol=1e-6, atol=1e-9)
    assert exact @ free > 0.3 * exact.norm() * free.norm()


def test_the_resolvent_is_differentiable_in_all_that_it_depends_on(monkeypatch) -> None:
    monkeypatch.setattr(maps, "_CG_TOL", 1e-14)
    monkeypatch.setattr(maps, "_CG_STEPS", 100)
    B = draw(6, 6)
    inputs = (draw(2, 6), torch.tensor(0.7, dtype=torch.float64), B @ B.mT / 6)

    def resolvent(r: Tensor, lam: Tensor, normal: Tensor) -> Tensor:
        symmetric = (normal + normal.mT) / 2
        return maps.resolvent(r, lam, lambda v: v @ symmetric)

    r, lam, normal = inputs
    exact = torch.linalg.solve(normal + lam * torch.eye(6, dtype=torch.float64), r.mT).mT
    assert_close(resolvent(*inputs), exact)
    assert torch.autograd.gradcheck(resolvent, [value.requires_grad_() for value in inputs])


def test_memory_does_not_grow_with_the_steps() -> None:
    A, data = diagonal_problem(5)
    held = []

    def note(x: Tensor) -> Tensor:
        held[-1] += x.numel()
        return x

    for max_steps in (3, 60):
        held.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            solved(module_for("proximal"), A, data, "gmres", max_steps)
    assert held[0] == held[1] > 0


def test_jacobian_penalty_is_the_size_of_the_jacobian() -> None:
    A, data = diagonal_problem(3)
    equation = Equation(module_for("proximal"), A, data[:1], torch.zeros_like(data[:1]))
    z = draw(1, 3, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = jacobian_size(equation.f, z.repeat(1500, 1, 1), *equation.given)
    J = torch.autograd.functional.jacobian(lambda z: equation.f(z, *equation.given), z).reshape(9, 9)
    assert sizes.mean().item() == pytest.approx((J.square().sum() / 9).item(), rel=0.07)


def test_a_penalised_jacobian_is_smaller(blurred) -> None:
    images, data, A = blurred
    losses = []
    for weight in (0.0, 10.0):
        method = DeepEquilibriumRecon(A, pretraining=False, jacobian_weight=weight, tol=1e-3, **TINY)
        losses.append(method.fit(images, data).history_[-1]["train_loss"])
    assert losses[0] < losses[1]


# ------------------------------------------------------------------------------------------ contraction
@given(
    st.integers(0, 100),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.floats(1e-3, 1e3),
    st.floats(0, 0.99),
    st.integers(1, 8),
    st.sampled_from(["C1", "D4"]),
    st.booleans(),
)
def test_contraction_is_proven(
    seed: int, scale: float, lam: float, c: float, n_angles: int, group: str, weighted: bool
) -> None:
    network = seeded(GradientStepCNN, seed, n_features=8, n_layers=2, group=group).double()
    for p in network.parameters():
        p.data = scale * draw(*p.shape, seed=seed)
    module = Equilibrium(network, "contractive", n_channels=1, lam=lam, lipschitz=c).double()
    A = as_torch(parallel_beam((4, 4), np.linspace(0, 3, n_angles), 8, dtype="float64"))
    z = draw(3, 4, 4, seed=seed + 5)
    weights = draw(3, *A.dimsd, seed=seed + 8).abs().clamp_max(1) if weighted else None
    equation = Equation(module, A, draw(3, *A.dimsd, seed=seed), z, weights=weights)
    f, given = equation.f, equation.given
    factor = module.contraction()
    assert factor is not None and factor < 1
    v = draw(3, 4, 4, seed=seed + 6)
    for _ in range(15):
        push = jvp(lambda z: f(z, *given), z, v / v.norm())[1]
        assert push.norm() <= factor * (1 + 1e-9)
        v = vjp(lambda z: f(z, *given), z, push)[1]
        if not v.any():
            break
    near = z + draw(3, 4, 4, seed=seed + 7)
    assert (f(near, *given) - f(z, *given)).norm() <= factor * (near - z).norm() * (1 + 1e-9)


def test_the_fixed_point_solves_the_equilibrium_equation(contractive, blurred) -> None:
    """``A^*(A x - y) / ||A||^2 + lam (x - h(x)) = 0``, where ``h`` is a network of normalised images."""
    _, data, operator = blurred
    y, A = data.astype(np.float64), as_torch(operator)
    x = torch.from_numpy(contractive.predict(y))
    h, normalised = contractive.module_.double().denoiser(), (x - contractive.level_) / contractive.spread_
    misfit = A.adjoint(A(x) - torch.from_numpy(y)) / A.norm() ** 2
    with torch.no_grad():
        rest = misfit + contractive.lam_ * contractive.spread_ * (normalised - h(normalised))
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
            A, iteration="contractive", lam=lam, pretraining=False, max_steps=3000, tol=1e-2, trainer=ONCE
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
@pytest.mark.parametrize("iteration", ITERATIONS)
def test_training_helps(blurred, iteration: str) -> None:
    images, data, A = blurred
    start = DeepEquilibriumRecon(A, iteration=iteration, pretraining=False, trainer=ONCE)
    trained = DeepEquilibriumRecon(A, iteration=iteration, tol=1e-4, **BRIEF)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # maps in training need not contract
        before = start.fit(images, data).score(images, data)
        trained.fit(images, data)
    assert trained.score(images, data) > before
    assert {epoch["phase"] for epoch in trained.history_} == {"pretraining", "equilibrium"}


class Interrupted(Exception):
    """Stands for the end of a process."""


def interrupt_after(n_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End what comes after so many files have been put in their places."""
    replace, written = os.replace, []

    def last(*paths: Any) -> None:
        replace(*paths)
        written.append(paths)
        if len(written) == n_files:
            raise Interrupted

    monkeypatch.setattr(os, "replace", last)


def weights(method: Any) -> dict[str, Tensor]:
    return method.module_.state_dict()


@pytest.mark.filterwarnings("ignore:DeepEquilibriumRecon:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("iteration", ["proximal", "admm"])
def test_a_killed_training_goes_on_to_the_same_weights(iteration: str, tmp_path: Path, monkeypatch) -> None:
    """The file is written after each epoch and at the end of each phase: 2 + 1 + 3 + 1 times."""
    images, data, A = make_problem("deblurring", n_samples=6, size=10, random_state=0)
    network = seeded(DnCNN, n_features=4, n_layers=3)
    settings = {"iteration": iteration, "network": network, "patch_size": 6, "max_steps": 4, "tol": 1e-3}

    def method(checkpoint: Path | None = None) -> DeepEquilibriumRecon:
        brief = {"batch_size": 2, "lr": 1e-2, "validation_fraction": 0.34}
        return DeepEquilibriumRecon(
            A,
            pretrainer=Trainer(max_epochs=2, **brief),
            trainer=Trainer(max_epochs=3, checkpoint=checkpoint, **brief),
            **settings,
        )

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        whole = method().fit(images, data)
    for n_files in (1, 2, 4, 7):
        path = tmp_path / str(n_files)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt_after(n_files, patch)
            method(path).fit(images, data)
        with warnings.catch_warnings(record=True) as told_again:
            warnings.simplefilter("always")
            resumed = method(path).fit(images, data)
        assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
        assert [str(w.message) for w in told_again] == [str(w.message) for w in told]
        assert [e["train_loss"] for e in resumed.history_] == [e["train_loss"] for e in whole.history_]


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
    twin = DeepEquilibriumRecon(A, backward="unroll", max_steps=4, **TINY).fit(images, data)
    _, info = twin.predict(data, return_info=True)
    assert (info.n_steps == 4).all() and info.converged.all()
    assert not np.allclose(
        twin.set_params(max_steps=8).predict(data), twin.set_params(max_steps=4).predict(data)
    )


@pytest.mark.parametrize("network", ["dncnn_d4", "gradient_step_d4"])
def test_denoising_commutes_with_turns_and_flips(network: str) -> None:
    images, data, A = make_problem("denoising", n_samples=6, size=16, noise=0.2, random_state=0)
    method = DeepEquilibriumRecon(network=network, **TINY).fit(images, data).set_params(tol=1e-10)
    y = data.astype(np.float64)[:, :12]
    turned = np.ascontiguousarray(np.rot90(y, 1, (1, 2)))
    flipped = np.ascontiguousarray(y[:, ::-1])
    assert_allclose(method.predict(turned), np.rot90(method.predict(y), 1, (1, 2)), atol=1e-8)
    assert_allclose(method.predict(flipped), method.predict(y)[:, ::-1], atol=1e-8)


def test_weight_is_learned_or_held(blurred) -> None:
    images, data, A = blurred
    trainer = Trainer(max_epochs=1, lr=1e-2)
    settings = {"iteration": "contractive", "tol": 1e-3, "trainer": trainer, "pretrainer": trainer}
    assert DeepEquilibriumRecon(A, lam=0.3, **settings).fit(images, data).lam_ == pytest.approx(0.3)
    learned = DeepEquilibriumRecon(A, **settings).fit(images, data)
    assert learned.contraction_ == pytest.approx(1 - learned.eta_ * learned.lam_ * 0.05)


def test_complex_images_are_two_channels() -> None:
    images, data, A = make_problem("mri", n_samples=4, size=16, random_state=0)
    method = DeepEquilibriumRecon(A, iteration="contractive", patch_size=8, tol=1e-3, **TINY)
    method.fit(images.astype(complex), data)
    assert method.predict(data).dtype.kind == "c"
    assert method.n_channels_ == 2
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
    method = DeepEquilibriumRecon(blind, network=Growing(), pretraining=False, solver="picard", trainer=ONCE)
    with pytest.warns(ConvergenceWarning, match="16 of 16 images in training did not reach a fixed point"):
        method.fit(images, 0 * data)
    with pytest.warns(ConvergenceWarning, match="16 of 16 images did not converge"):
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
    method = DeepEquilibriumRecon(A, iteration="contractive", **TINY).fit(images, data)
    method.set_params(lam=2.0, lipschitz=0.7, warm_start=True).fit(images, data)
    assert method.lam_ == pytest.approx(2.0) and method.contraction_ == pytest.approx(1 - 2 / 3 * 0.3)
    assert {epoch["phase"] for epoch in method.history_} == {"equilibrium"}


def test_a_file_holds_the_map_that_was_fitted(blurred, tmp_path: Path) -> None:
    """Also where a parameter has been changed in between."""
    images, data, A = blurred
    method = DeepEquilibriumRecon(A, iteration="contractive", lam=1.0, **TINY).fit(images, data)
    expected = method.predict(data)
    method.set_params(lipschitz=0.1).save(tmp_path / "method")
    loaded = skinverse.load(tmp_path / "method")
    with pytest.raises(ValueError, match="fit again"):
        loaded.predict(data)
    assert_array_equal(loaded.set_params(lipschitz=0.95).predict(data), expected)


def test_modules_are_trained_once_with_memory(blurred, tmp_path: Path) -> None:
    images, data, A = blurred
    network = seeded(GradientStepCNN, n_features=8)
    settings = {"iteration": "contractive", "network": network, "memory": str(tmp_path), **TINY}
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
        ({"lam": -1.0}, "lam: expected a number > 0"),
        ({"lam": 0.0, "iteration": "admm"}, "lam: expected a number > 0"),
        ({"trainer": Trainer(max_grad_norm=-1.0)}, "trainer__max_grad_norm: expected a number > 0"),
        ({"pretrainer": Trainer(max_epochs=0)}, "pretrainer__max_epochs: expected a whole number >= 1"),
        ({"pretrainer": None}, "pretrainer: expected a Trainer"),
        ({"max_steps": 0}, "max_steps: expected a whole number >= 1"),
        ({"tol": -1.0}, "tol: expected a number >= 0"),
    ],
)
def test_bad_parameters_are_named(blurred, parameters: dict[str, Any], message: str) -> None:
    images, data, A = blurred
    with pytest.raises(ValueError, match=message):
        DeepEquilibriumRecon(A, **parameters).fit(images, data)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("iteration", "dtype"), [("admm", "float32"), ("proximal", "float64")])
def test_companions_change_nothing_where_iterations_do_not_contract(iteration: str, dtype: str) -> None:
    images, data, A = make_problem("compressive_sensing", n_samples=4, size=12, noise=0.03, random_state=0)
    images, data = images.astype(dtype), data.astype(dtype)
    brief = Trainer(n_steps=6)
    model = DeepEquilibriumRecon(A, iteration=iteration, trainer=brief, pretraining=False).fit(images, data)
    together = model.predict(data)
    assert_array_equal(model.predict(data[1:2])[0], together[1])
    assert_array_equal(model.predict(data[::-1])[::-1], together)
