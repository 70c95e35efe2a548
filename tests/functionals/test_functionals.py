"""Values, gradients, proxes and conjugates of every functional, against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.fft
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor
from torch.autograd import gradcheck

from skinverse.functionals import (
    Box,
    CosineSparsity,
    DataBall,
    Functional,
    GroupNorm,
    KullbackLeibler,
    L1Norm,
    LeastSquares,
    NuclearNorm,
    SquaredNorm,
    TotalGeneralizedVariation,
    TotalNuclearVariation,
    TotalVariation,
    WaveletSparsity,
)

N = 3
SHAPES = [(7,), (5, 6), (2, 4, 5)]
REAL, COMPLEX = torch.float64, torch.complex128
WEIGHTS = torch.tensor([0.5, 0.0, 2.0], dtype=REAL)
STEPS = torch.tensor([0.3, 1.0, 2.5], dtype=REAL)
TGV = TotalGeneralizedVariation()


class Dense:
    """A matrix as a linear map of images, ``positive`` for counts."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, *, positive: bool = False) -> None:
        self.dims = shape
        size = int(np.prod(shape))
        matrix = draw((size + 2, size), dtype, seed=9)
        self.matrix = matrix.abs() if positive else matrix

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.conj()).reshape(-1, *self.dims)

    def norm(self) -> float:
        return float(np.linalg.norm(self.matrix.numpy(), 2))


def draw(shape: tuple[int, ...], dtype: torch.dtype = REAL, *, seed: int = 0) -> Tensor:
    """Normal numbers, the same in single as in double precision."""
    double = COMPLEX if dtype.is_complex else REAL
    return torch.randn(shape, dtype=double, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inner(a: Tensor, b: Tensor) -> np.ndarray:
    return (a.conj() * b).real.flatten(1).sum(1).numpy()


def functionals(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Functional]:
    """Every functional that takes images of this shape and type; fields are images with a channel axis."""
    real, y = dtype.to_real(), draw((N, *shape), dtype, seed=1)
    weights, A = draw((N, *shape), real, seed=2).abs(), Dense(shape, dtype)
    data = draw((N, *A.matrix.shape[:1]), dtype, seed=3)
    found: dict[str, Functional] = {
        "L1Norm": L1Norm(),
        "SquaredNorm": SquaredNorm(),
        "LeastSquares": LeastSquares(None, y),
        "LeastSquares weighted": LeastSquares(None, y, weights=weights),
        "LeastSquares shared weights": LeastSquares(None, y, weights=weights[:1]),
        "LeastSquares dense": LeastSquares(A, data),
        "LeastSquares dense weighted": LeastSquares(A, data, weights=data.abs()),
        "DataBall": DataBall(None, y, torch.tensor([0.5, 100.0, 2.0], dtype=real)),
        "DataBall dense": DataBall(A, data, 1000.0),
        "TotalVariation": TotalVariation(),
        "TotalVariation anisotropic": TotalVariation(isotropic=False),
        "TotalVariation of distances": TotalVariation(spacing=(3.0, 0.5)),
        "TotalNuclearVariation": TotalNuclearVariation(),
        "TotalGeneralizedVariation": TotalGeneralizedVariation(),
        "WaveletSparsity": WaveletSparsity(order=2),
        "CosineSparsity": CosineSparsity(),
        "Scaled": 0.5 * LeastSquares(None, y),
        "Scaled per image": WEIGHTS.to(real) * L1Norm(),
        "Sum": LeastSquares(A, data) + WEIGHTS.to(real) * TotalVariation() + 0.1 * L1Norm(),
    }
    if not dtype.is_complex:
        positive = Dense(shape, dtype, positive=True)
        counts = (10 * data.abs()).round()
        found |= {
            "Box": Box(-1, 100),
            "KullbackLeibler": KullbackLeibler(None, y.abs(), background=5.0),
            "KullbackLeibler background": KullbackLeibler(None, y.abs(), background=5 + weights),
            "KullbackLeibler dense": KullbackLeibler(positive, counts, background=100.0),
        }
    if len(shape) == 3:
        d = shape[0] - 1
        found |= {
            "GroupNorm": GroupNorm(),
            "GroupNorm sizes": GroupNorm((1, 1)),
            "OfImage": TGV.lift(LeastSquares(None, y[:, 0], weights=weights[:, 0]), d),
            "OfImage of variation": TGV.lift(TotalVariation(), d),
        }
    return found


class Case(NamedTuple):
    """A functional by name, and the images it takes."""

    name: str
    shape: tuple[int, ...]
    complex: bool

    def of(self, dtype: torch.dtype) -> Functional:
        return functionals(self.shape, dtype)[self.name]

    def dtype(self, bits: int = 64) -> torch.dtype:
        real = torch.float64 if bits == 64 else torch.float32
        return real.to_complex() if self.complex else real

    def images(self, bits: int = 64) -> Tensor:
        return draw((N, *self.shape), self.dtype(bits), seed=4)


CASES = [
    Case(name, shape, dtype.is_complex)
    for shape in SHAPES
    for dtype in (REAL, COMPLEX)
    for name in functionals(shape, dtype)
]
every = pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.name} {c.shape} {'c' if c.complex else 'r'}"
)
every_smooth = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.of(case.dtype()).smooth],
    ids=lambda c: f"{c.name} {c.shape} {'c' if c.complex else 'r'}",
)


@every
@pytest.mark.parametrize("bits", [32, 64])
def test_one_real_value_per_image_in_the_images_precision(case: Case, bits: int) -> None:
    f, x = case.of(case.dtype(bits)), case.images(bits)
    value = f(x)
    assert value.shape == (N,)
    assert value.dtype == x.dtype.to_real()
    assert not value.isnan().any()
    assert_allclose(value, case.of(case.dtype())(x.to(case.dtype())), rtol=1e-4)
    if f.smooth:
        assert f.grad(x).dtype == x.dtype
    if f.proximable:
        assert f.prox(x, STEPS.to(x.dtype.to_real())).dtype == x.dtype


@every
@pytest.mark.parametrize("index", [[1], [2, 0], [0, 0, 1, 2]])
def test_images_do_not_depend_on_their_companions(case: Case, index: list[int]) -> None:
    f, x, pick = case.of(case.dtype()), case.images(), torch.tensor(index)
    chosen = f.select(pick)
    assert_allclose(chosen(x[pick]), f(x)[pick], rtol=1e-10)
    if f.smooth:
        assert_allclose(chosen.grad(x[pick]), f.grad(x)[pick], rtol=1e-10, atol=1e-12)
    if f.proximable:
        assert_allclose(chosen.prox(x[pick], STEPS[pick]), f.prox(x, STEPS)[pick], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("select_from", [LeastSquares, KullbackLeibler])
def test_what_pixels_share_stays_when_there_are_as_many_images_as_pixels(select_from: Any) -> None:
    y, shared = draw((N, N)).abs(), torch.tensor([1.0, 2.0, 3.0], dtype=REAL)
    f = (
        LeastSquares(None, y, weights=shared)
        if select_from is LeastSquares
        else KullbackLeibler(None, y, background=shared)
    )
    x, pick = draw((N, N), seed=1).abs(), torch.tensor([2, 0])
    for g in (f, f.split()[0]):
        assert_allclose(g.select(pick)(x[pick]), g(x)[pick])


@every
def test_repr_names_the_functional(case: Case) -> None:
    f = case.of(case.dtype())
    for term in f.summands:
        assert type(term).__name__ in repr(f) or type(term).__name__ == "Scaled"
    assert repr(f) == repr(f.select(torch.arange(N)))
    assert "2 * " in repr(2 * f)


@every
def test_sums_and_scalings_compose(case: Case) -> None:
    f, x = case.of(case.dtype()), case.images()
    g = L1Norm()
    total = 2 * f + WEIGHTS * g
    finite = torch.isfinite(f(x))
    assert_allclose(total(x), 2 * f(x) + WEIGHTS * g(x))
    assert_allclose((0 * f)(x)[finite], 0)
    assert len((total + f).summands) == 2 * len(f.summands) + 1
    pick = torch.tensor([2, 0])
    assert_allclose(total.select(pick)(x[pick]), total(x)[pick])
    assert total.smooth is False
    assert (f + SquaredNorm()).smooth is f.smooth


@every
def test_scaling_scales_prox_and_split(case: Case) -> None:
    f, x = case.of(case.dtype()), case.images()
    scaled = WEIGHTS * f
    outer, linear = scaled.split()
    finite = torch.isfinite(f(x))
    Kx = x if linear is None else linear(x)
    assert_allclose(outer(Kx)[finite], (WEIGHTS * f(x))[finite])
    if f.proximable:
        assert_allclose(scaled.prox(x, STEPS), f.prox(x, STEPS * WEIGHTS))
        assert_allclose((2 * f).prox(x, 0.5), f.prox(x, 1.0))


def test_multiples_and_lifts_of_a_sum_keep_its_terms_apart() -> None:
    """A solver finds the prox and the split of each term."""
    x, f = draw((N, 4, 4)), LeastSquares(None, draw((N, 4, 4), seed=1)) + TotalVariation()
    outer = (2 * (0.5 * f)).summands[1].split()[0]
    assert_allclose(outer(TotalVariation().split()[1](x)), TotalVariation()(x))
    z = draw((N, 3, 4, 4))
    lifted = TGV.lift(f, 2)
    assert [term.split()[0].proximable for term in lifted.summands] == [True, True]
    assert_allclose(sum(term(z) for term in lifted.summands), f(z[:, 0]))
    assert (
        repr(2 * f) == "2 * LeastSquares() + 2 * TotalVariation(isotropic=True, axes=(-2, -1), spacing=None)"
    )


@pytest.mark.parametrize("weight", [-1, -0.1, float("nan"), torch.tensor([1.0, -2.0, 0.0])])
def test_weights_are_not_negative(weight: Tensor | float) -> None:
    with pytest.raises(ValueError, match=r"expected a weight >= 0 of L1Norm\(\)"):
        weight * L1Norm()


@pytest.mark.parametrize(
    "f",
    [
        TotalVariation(isotropic=False),
        TotalVariation(spacing=(3, 0.5)),
        TotalNuclearVariation(spacing=(3, 0.5)),
        TotalGeneralizedVariation(alpha=0.5),
        TotalGeneralizedVariation(spacing=(3, 0.5)),
        WaveletSparsity(order=2, n_levels=3),
        Box(0, None),
    ],
)
def test_repr_can_be_read_back(f: Functional) -> None:
    x = draw((N, 9, 9)).abs()
    assert_allclose(eval(repr(f))(x), f(x), rtol=1e-12)


def test_weak_convexity_adds_up() -> None:
    class Concave(SquaredNorm):
        weak_convexity = 1.5

    class Unknown(SquaredNorm):
        weak_convexity = None

    assert (2 * Concave() + torch.tensor([0.0, 3.0]) * Concave() + L1Norm()).weak_convexity == 7.5
    assert (L1Norm() + 2 * Unknown()).weak_convexity is None
    assert TGV.lift(Concave(), 2).weak_convexity == 1.5


def test_what_a_functional_lacks_is_said() -> None:
    x = draw((N, 4, 4))
    with pytest.raises(TypeError, match="not differentiable"):
        TotalVariation().grad(x)
    with pytest.raises(TypeError, match="not differentiable"):
        (SquaredNorm() + L1Norm()).grad(x)
    for f in (TotalVariation(), LeastSquares(Dense((4, 4), REAL), x.flatten(1)), L1Norm() + L1Norm()):
        assert not f.proximable
        with pytest.raises(TypeError, match="no prox in closed form"):
            f.prox(x, 1.0)


# Gradients


@every_smooth
def test_gradient_against_finite_differences(case: Case) -> None:
    f, x = case.of(case.dtype()), case.images()
    value, gradient = f.value_and_grad(x)
    assert_allclose(value, f(x))
    for seed in range(5):
        h = draw(x.shape, x.dtype, seed=100 + seed)
        slope = (f(x + 1e-5 * h) - f(x - 1e-5 * h)) / 2e-5
        assert_allclose(inner(gradient, h), slope, rtol=1e-6, atol=1e-6 * float(f(x).max()))


@every_smooth
@pytest.mark.draws_globally  # gradcheck's fast mode does
def test_gradients_are_differentiable(case: Case) -> None:
    f, x = case.of(case.dtype()), case.images().requires_grad_()
    assert gradcheck(f.grad, (x,), fast_mode=True)
    assert gradcheck(f, (x,), fast_mode=True)
    with torch.no_grad():
        value, gradient = f.value_and_grad(x.detach())
    assert not value.requires_grad
    assert not gradient.requires_grad


@pytest.mark.draws_globally
def test_gradients_by_automatic_differentiation() -> None:
    class Quartic(Functional):
        smooth = True

        def __call__(self, x: Tensor) -> Tensor:
            return x.abs().pow(4).flatten(1).sum(1)

    for dtype in (REAL, COMPLEX):
        x = draw((N, 5), dtype)
        assert_allclose(Quartic().grad(x).detach(), 4 * x.abs().square() * x)
        assert gradcheck(Quartic().grad, (x.requires_grad_(),), fast_mode=True)
        with torch.no_grad():
            assert not Quartic().grad(x).requires_grad


@pytest.mark.parametrize("f", [SquaredNorm(), 2 * SquaredNorm() + SquaredNorm()])
def test_squared_norm_has_its_gradient_at_zero(f: Functional) -> None:
    assert_allclose(f.grad(torch.zeros(N, 4)), 0)


# Proxes

CHANNELS = draw((N, 5, 1), seed=20)
Y, POSITIVE = draw((N, 2), seed=21), draw((N, 2), seed=22).abs()
COMPLEX_Y = draw((N, 2), COMPLEX, seed=23)
RADIUS = torch.tensor([0.2, 1.0, 30.0], dtype=REAL)
COUNTS = torch.tensor([[0.0, 1.0], [3.0, 0.5], [7.0, 0.0]], dtype=REAL)


class Prox(NamedTuple):
    """A proximable functional, the shape of its images, and its formula for image i in NumPy."""

    f: Functional
    shape: tuple[int, ...]
    formula: Callable[[np.ndarray, int], float]
    complex: bool = False


def squares(z: Any, weights: Any = 1.0) -> float:
    return float((weights * np.abs(np.asarray(z)) ** 2).sum() / 2)


def poisson(z: np.ndarray, i: int) -> float:
    v, y = z + POSITIVE[i].numpy(), COUNTS[i].numpy()
    inside = np.all((v > 0) | ((v == 0) & (y == 0)))
    return (
        sum(v - y + [c * np.log(c / m) if c > 0 else 0 for c, m in zip(y, v, strict=True)])
        if inside
        else np.inf
    )


def ball(z: np.ndarray, i: int, y: Tensor = Y) -> float:
    return 0.0 if np.linalg.norm(z - y[i].numpy()) <= RADIUS[i] * (1 + 1e-12) else np.inf


def box(low: float, high: float) -> Callable[[np.ndarray, int], float]:
    return lambda z, i: 0.0 if np.all((z >= low) & (z <= high)) else np.inf


def groups(*sizes: int) -> Callable[[np.ndarray, int], float]:
    cuts = np.cumsum(sizes)[:-1]
    return lambda p, i: sum(np.linalg.norm(part, axis=0).sum() for part in np.split(p, cuts))


def nuclear(p: np.ndarray, i: int) -> float:
    """Of the matrices of directions and channels, (d, channels, *space)."""
    return float(np.linalg.svd(np.moveaxis(p, (0, 1), (-2, -1)), compute_uv=False).sum())


def haar(z: np.ndarray) -> float:
    """One level for four samples."""
    return float(np.abs(z[0::2] - z[1::2]).sum() / np.sqrt(2))


def cosines(z: np.ndarray) -> float:
    return float(np.abs(scipy.fft.dctn(z, norm="ortho")).sum() - np.abs(z.sum()) / np.sqrt(z.size))


def modulus(z: np.ndarray, i: int) -> float:
    return float(np.abs(z).sum())


PROXES = {
    "L1Norm": Prox(L1Norm(), (2,), modulus),
    "L1Norm complex": Prox(L1Norm(), (2,), modulus, True),
    "GroupNorm": Prox(GroupNorm(), (2, 2), groups(2)),
    "GroupNorm complex": Prox(GroupNorm(), (2, 1), groups(2), True),
    "GroupNorm sizes": Prox(GroupNorm((2, 3)), (5, 2), groups(2, 3)),
    "NuclearNorm": Prox(NuclearNorm(), (2, 3, 1, 2), nuclear),
    "NuclearNorm complex": Prox(NuclearNorm(), (2, 2, 2, 1), nuclear, True),
    "NuclearNorm of volumes": Prox(NuclearNorm((-3, -2, -1)), (3, 4, 1, 1, 2), nuclear),
    "NuclearNorm of two channels": Prox(NuclearNorm((-3, -2, -1)), (3, 2, 1, 2, 1), nuclear),
    "SquaredNorm": Prox(SquaredNorm(), (2,), lambda z, i: squares(z)),
    "Box": Prox(Box(-0.5, 0.7), (2,), box(-0.5, 0.7)),
    "Box low": Prox(Box(0), (2,), box(0, np.inf)),
    "Box high": Prox(Box(None, 0.3), (2,), box(-np.inf, 0.3)),
    "Box of everything": Prox(Box(), (2,), lambda z, i: 0.0),
    "LeastSquares": Prox(LeastSquares(None, Y), (2,), lambda z, i: squares(z - Y[i].numpy())),
    "LeastSquares complex": Prox(
        LeastSquares(None, COMPLEX_Y), (2,), lambda z, i: squares(z - COMPLEX_Y[i].numpy()), True
    ),
    "LeastSquares weighted": Prox(
        LeastSquares(None, Y, weights=POSITIVE),
        (2,),
        lambda z, i: squares(z - Y[i].numpy(), POSITIVE[i].numpy()),
    ),
    "LeastSquares weighted by zeros": Prox(
        LeastSquares(None, Y, weights=COUNTS),
        (2,),
        lambda z, i: squares(z - Y[i].numpy(), COUNTS[i].numpy()),
    ),
    "KullbackLeibler": Prox(KullbackLeibler(None, COUNTS, background=POSITIVE), (2,), poisson),
    "DataBall": Prox(DataBall(None, Y, RADIUS), (2,), ball),
    "DataBall complex": Prox(
        DataBall(None, COMPLEX_Y, RADIUS), (2,), lambda z, i: ball(z, i, COMPLEX_Y), True
    ),
    "WaveletSparsity": Prox(WaveletSparsity(order=1, n_levels=1), (4,), lambda z, i: haar(z)),
    "WaveletSparsity complex": Prox(WaveletSparsity(order=1, n_levels=1), (4,), lambda z, i: haar(z), True),
    "CosineSparsity": Prox(CosineSparsity(), (3,), lambda z, i: cosines(z)),
    "CosineSparsity image": Prox(CosineSparsity(), (2, 3), lambda z, i: cosines(z)),
    "Scaled": Prox(0.4 * L1Norm(), (2,), lambda z, i: 0.4 * modulus(z, i)),
    "Scaled per image": Prox(WEIGHTS * L1Norm(), (2,), lambda z, i: float(WEIGHTS[i]) * modulus(z, i)),
    "Scaled LeastSquares": Prox(
        WEIGHTS * LeastSquares(None, Y), (2,), lambda z, i: float(WEIGHTS[i]) * squares(z - Y[i].numpy())
    ),
    "Scaled KullbackLeibler": Prox(
        1.7 * KullbackLeibler(None, COUNTS, background=POSITIVE), (2,), lambda z, i: 1.7 * poisson(z, i)
    ),
    "outer of LeastSquares": Prox(
        LeastSquares(Dense((2,), REAL), Y).split()[0], (2,), lambda z, i: squares(z - Y[i].numpy())
    ),
    "outer of weighted LeastSquares": Prox(
        LeastSquares(Dense((2,), REAL), Y, weights=POSITIVE).split()[0],
        (2,),
        lambda z, i: squares(z - Y[i].numpy(), POSITIVE[i].numpy()),
    ),
    "outer of KullbackLeibler": Prox(
        KullbackLeibler(Dense((2,), REAL), COUNTS, background=POSITIVE).split()[0], (2,), poisson
    ),
    "outer of DataBall": Prox(DataBall(Dense((2,), REAL), Y, RADIUS).split()[0], (2,), ball),
    "outer of TotalVariation": Prox(TotalVariation().split()[0], (2, 1, 2), groups(2)),
    "outer of anisotropic TotalVariation": Prox(
        TotalVariation(isotropic=False).split()[0], (2, 1, 2), modulus
    ),
    "outer of lifted TotalGeneralizedVariation": Prox(
        TotalGeneralizedVariation().lifted().split()[0], (5, 1, 2), groups(2, 3)
    ),
    "outer of lifted signals": Prox(TotalGeneralizedVariation().lifted().split()[0], (2, 3), groups(1, 1)),
    "OfImage": Prox(TGV.lift(L1Norm(), 2), (3, 1, 1), lambda z, i: float(np.abs(z[0]).sum())),
}
every_prox = pytest.mark.parametrize("case", PROXES.values(), ids=PROXES.keys())
every_small_prox = pytest.mark.parametrize(
    "case",
    [case for case in PROXES.values() if case.shape == (2,) and not case.complex],
    ids=[name for name, case in PROXES.items() if case.shape == (2,) and not case.complex],
)
seeds = st.integers(0, 2**31)
logarithms = st.floats(-2, 2)


def points(case: Prox, seed: int, scale: float = 1.5) -> Tensor:
    return scale * draw((N, *case.shape), COMPLEX if case.complex else REAL, seed=seed)


def objective(case: Prox, z: np.ndarray, x: np.ndarray, step: float, i: int) -> float:
    return squares(z - x) + step * case.formula(z, i)


@every_prox
@given(seed=seeds, log_step=logarithms, log_scale=st.floats(-4, 0.5))
def test_prox_is_the_minimiser(case: Prox, seed: int, log_step: float, log_scale: float) -> None:
    """No point undercuts the prox ``p``: the objective is 1-strongly convex, so by at least |z - p|^2 / 2."""
    x, steps = points(case, seed), 10**log_step * STEPS
    p = case.f.prox(x, steps)
    near = p + 10**log_scale * points(case, seed + 1)
    for candidates in (x, near, points(case, seed + 2), (p + x) / 2):
        for i in range(N):
            own, other, at = p[i].numpy(), candidates[i].numpy(), x[i].numpy()
            least = objective(case, own, at, float(steps[i]), i)
            found = objective(case, other, at, float(steps[i]), i)
            assert np.isfinite(least)
            assert found >= least + squares(other - own) - 1e-9 * (1 + least)


@every_small_prox
@pytest.mark.parametrize("image", range(N))
def test_prox_agrees_with_a_numerical_minimiser(case: Prox, image: int) -> None:
    x = points(case, 5)
    p = case.f.prox(x, STEPS)[image].numpy()
    start = np.array([0.11, -0.07])
    runs = [
        scipy.optimize.minimize(
            lambda z: min(objective(case, z, x[image].numpy(), float(STEPS[image]), image), 1e9),
            p + turn * start,
            method="Nelder-Mead",
            options={"xatol": 1e-8, "fatol": 1e-13, "initial_simplex": p + turn * start + 0.3 * SIMPLEX},
        )
        for turn in (1, -1, 0.1)
    ]
    assert_allclose(min(runs, key=lambda run: run.fun).x, p, atol=1e-4)


SIMPLEX = np.array([[0.0, 0.0], [1.0, 0.2], [-0.3, 1.0]])


@every_prox
@given(seed=seeds, log_step=logarithms)
def test_prox_is_firmly_nonexpansive(case: Prox, seed: int, log_step: float) -> None:
    a, b = points(case, seed), points(case, seed + 1)
    change = case.f.prox(a, 10**log_step) - case.f.prox(b, 10**log_step)
    assert (inner(change, change) <= inner(change, a - b) + 1e-10).all()


@every_prox
@given(seed=seeds, log_step=logarithms)
def test_prox_of_the_conjugate_obeys_moreau(case: Prox, seed: int, log_step: float) -> None:
    u, steps = points(case, seed), 10**log_step * STEPS
    s = steps.reshape(-1, *[1] * len(case.shape))
    assert_allclose(case.f.prox_conjugate(u, steps), u - s * case.f.prox(u / s, 1 / steps), atol=1e-8)


@every_prox
def test_proxes_take_one_number_for_all_images(case: Prox) -> None:
    x = points(case, 6)
    for prox in (case.f.prox, case.f.prox_conjugate):
        assert_allclose(prox(x, 0.7), prox(x, torch.full((N,), 0.7, dtype=REAL)), atol=1e-14)


@every_prox
def test_values_follow_the_formula(case: Prox) -> None:
    for x in (points(case, 7), case.f.prox(points(case, 8), STEPS)):
        assert_allclose(case.f(x), [case.formula(x[i].numpy(), i) for i in range(N)], atol=1e-12)


WITHOUT_CONJUGATE = {
    "WaveletSparsity",
    "WaveletSparsity complex",
    "CosineSparsity",
    "CosineSparsity image",
    "OfImage",
}


@pytest.mark.parametrize("name", sorted(PROXES.keys() - WITHOUT_CONJUGATE))
@given(seed=seeds, log_step=logarithms, log_scale=st.floats(-2, 1))
def test_conjugate_by_fenchel_and_young(name: str, seed: int, log_step: float, log_scale: float) -> None:
    """``f(x) + f*(u) >= <x, u>``, with equality where ``x = prox(x + s u)``."""
    case = PROXES[name]
    x, u = points(case, seed), 10**log_scale * points(case, seed + 1)
    bound = case.f.conjugate(u)
    s = 10**log_step
    p = case.f.prox(x, s)
    assert ((case.f(p) + bound).numpy() >= inner(p, u) - 1e-9).all()
    dual = (x - p) / s
    total = case.f(p) + case.f.conjugate(dual)
    # rounding of (x - p) / s may leave the domain of the conjugate by a hair: look just inside
    inside = case.f(p) + case.f.conjugate(dual * (1 - 1e-9))
    closest = torch.where(total.isfinite(), total, inside)
    assert_allclose(closest, inner(p, dual), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(WITHOUT_CONJUGATE))
def test_no_conjugate_without_a_formula(name: str) -> None:
    assert PROXES[name].f.conjugate(points(PROXES[name], 0)) is None


@pytest.mark.parametrize("f", [L1Norm(), SquaredNorm(), LeastSquares(None, Y)])
def test_weight_zero_is_the_zero_functional(f: Functional) -> None:
    zero, u = torch.zeros(N, dtype=REAL) * f, draw((N, 2), seed=30)
    assert_allclose(zero.prox(u, STEPS), u)
    assert_allclose(zero.prox_conjugate(u, STEPS), 0)
    assert_allclose(zero.conjugate(u), np.inf)
    assert_allclose(zero.conjugate(0 * u), 0)


@pytest.mark.parametrize("f", [L1Norm(), GroupNorm()])
def test_shrinkage_at_and_of_zero(f: Functional) -> None:
    x = torch.zeros(N, 2, 3)
    x[0, 0, 0] = 1e-30
    assert_allclose(f.prox(x, 1e3), 0)
    assert_allclose(f.prox(x, 0.0), x)
    assert_allclose(f.prox_conjugate(x, 1.0), x)


def test_ball_of_radius_zero_is_its_centre() -> None:
    y = draw((N, 4))
    f = DataBall(None, y, torch.zeros(N, dtype=REAL))
    assert_allclose(f.prox(draw((N, 4), seed=1), 1.0), y)
    assert_allclose(f.prox(y, 1.0), y)


# Single functionals


@given(seed=seeds)
def test_kullback_leibler_is_scipys(seed: int) -> None:
    random = np.random.default_rng(seed)
    y, mean, background = random.poisson(2.0, (N, 6)), random.gamma(2.0, size=(N, 6)), 0.3
    expected = scipy.special.kl_div(y, mean + background).sum(1)
    f = KullbackLeibler(None, torch.tensor(y, dtype=REAL), background=background)
    assert_allclose(f(torch.tensor(mean)), expected, rtol=1e-12)
    A = Dense((4,), REAL, positive=True)
    x = torch.tensor(random.gamma(2.0, size=(N, 4)))
    expected = scipy.special.kl_div(y, (A(x) + background).numpy()).sum(1)
    assert_allclose(KullbackLeibler(A, f.y, background=background)(x), expected, rtol=1e-12)


def test_kullback_leibler_is_infinite_outside() -> None:
    f = KullbackLeibler(None, torch.tensor([[1.0, 0.0]]).expand(5, 2), background=1.0)
    x = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [-1.5, 0.0], [0.0, -1.5]])
    assert_allclose(f(x), [1.0, np.inf, 0.0, np.inf, np.inf])
    assert_allclose(f.grad(x)[0], [0.0, 1.0])


def test_kullback_leibler_prox_in_single_precision() -> None:
    """The root must not cancel where the image is far below zero."""
    y, x = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[-1e4, -3e5, -1e4]])
    found = KullbackLeibler(None, y).prox(x, 1.0)
    expected = KullbackLeibler(None, y.double()).prox(x.double(), 1.0)
    assert_allclose(found, [[1e-4, 1e-5, 0.0]], rtol=1e-3)
    assert_allclose(expected, found, rtol=1e-3)
    assert torch.isfinite(KullbackLeibler(None, y)(found)).all()
    assert_allclose(KullbackLeibler(None, torch.zeros(1, 1)).prox(torch.ones(1, 1), 1.0), 0)


@pytest.mark.parametrize("y", [torch.tensor([[-1.0]]), torch.tensor([[1.0 + 0j]])])
def test_counts_are_real_and_not_negative(y: Tensor) -> None:
    with pytest.raises(ValueError, match="real counts y >= 0"):
        KullbackLeibler(None, y)


@pytest.mark.parametrize("background", [-0.1, torch.tensor([[0.0, -1.0]])])
def test_background_is_not_negative(background: Tensor | float) -> None:
    with pytest.raises(ValueError, match="background >= 0"):
        KullbackLeibler(None, torch.ones(1, 2), background=background)


@pytest.mark.parametrize("radius", [-0.1, torch.tensor([1.0, -1.0])])
def test_radius_is_not_negative(radius: Tensor | float) -> None:
    with pytest.raises(ValueError, match="DataBall: expected a radius >= 0, got"):
        DataBall(None, torch.ones(2, 3), radius)


def test_data_ball_is_zero_inside_and_infinite_outside() -> None:
    A = Dense((4,), COMPLEX)
    x = draw((N, 4), COMPLEX, seed=1)
    y = A(x) + 2 * torch.eye(N, 6)
    assert_allclose(DataBall(A, y, torch.tensor([1.9, 2.0, 2.1], dtype=REAL))(x), [np.inf, 0, 0])
    assert_allclose(DataBall(A, y, 1.5)(x), np.inf)


def test_box_errors() -> None:
    with pytest.raises(ValueError, match="low <= high, got low=1 and high=0"):
        Box(1, 0)
    for use in (Box(0), lambda x: Box(0).prox(x, 1.0)):
        with pytest.raises(ValueError, match="expected real images"):
            use(torch.ones(1, 2, dtype=torch.complex64))


def test_least_squares_is_the_dense_formula() -> None:
    A = Dense((4,), COMPLEX)
    x, y, w = draw((N, 4), COMPLEX, seed=1), draw((N, 6), COMPLEX, seed=2), draw((N, 6), seed=3).abs()
    for weights in (None, w, w[:1], w[0]):
        W = 1 if weights is None else weights.numpy()
        residual = (A.matrix.numpy() @ x.numpy().T).T - y.numpy()
        f = LeastSquares(A, y, weights=weights)
        assert_allclose(f(x), (W * np.abs(residual) ** 2).sum(1) / 2)
        assert_allclose(f.grad(x), (A.matrix.numpy().conj().T @ (W * residual).T).T)


def test_least_squares_knows_the_lipschitz_constant_of_its_gradient() -> None:
    A, y, w = Dense((4,), REAL), draw((N, 6)), draw((N, 6), seed=3).abs()
    M = A.matrix.numpy()
    assert_allclose(LeastSquares(A, y).lipschitz, np.linalg.norm(M.T @ M, 2))
    assert_allclose(LeastSquares(None, y, weights=w).lipschitz, w.max())
    weighted = LeastSquares(A, y, weights=w).lipschitz
    for weights in w.numpy():
        assert np.linalg.norm(M.T @ (weights[:, None] * M), 2) <= weighted
    assert LeastSquares(None, y).lipschitz == 1.0


def test_least_squares_weights_are_not_negative() -> None:
    with pytest.raises(ValueError, match="LeastSquares: expected weights >= 0"):
        LeastSquares(None, torch.ones(1, 2), weights=torch.tensor([[1.0, -1.0]]))
