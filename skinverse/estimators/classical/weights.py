"""The weight of a regulariser, chosen image by image from the data alone.

References
----------
C. M. Stein, Estimation of the mean of a multivariate normal distribution, Annals of Statistics 9, 1981.
G. H. Golub, M. Heath and G. Wahba, Generalized cross-validation as a method for choosing a good ridge
parameter, Technometrics 21, 1979.
S. Ramani, T. Blu and M. Unser, Monte-Carlo SURE: a black-box optimization of regularization parameters for
general denoising algorithms, IEEE Transactions on Image Processing 17, 2008.
F. Luisier, T. Blu and M. Unser, Image denoising in mixed Poisson-Gaussian noise, IEEE Transactions on Image
Processing 20, 2011.
G. H. Golub and U. von Matt, Generalized cross-validation for large-scale problems, Journal of Computational
and Graphical Statistics 6, 1997.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from skinverse._parameters import OneOf, Real, parameter
from skinverse._tensors import LinearMap, dot, expand, norm
from skinverse.estimators._units import Units
from skinverse.functionals import Functional
from skinverse.solvers import PrimalDualPath, spectral_measure

# Weights of the search, free of units: octaves from where noise becomes flat to where nothing is smoothed.
_WEIGHTS = tuple(4 * 2.0**-k for k in range(22))
# Octaves without a smaller error after which the search ends.
_PATIENCE = 2
# Difference of the logarithms of errors of flat images, which are as accurate as a few steps make them.
_PLATEAU = 0.1
# Steps and tolerance for each weight. With 30 steps, CT at 1 % of noise lost 8 dB against the best weight.
_MAX_STEPS, _TOL = 100, 1e-3
# Bisections of the logarithm of a weight that is known to an octave: it is found to 2 %.
_N_BISECTIONS = 5
# Length of the perturbation: data have a mean square of one.
_STEP = 1e-3
# The weights of Tikhonov's penalty, ten for each decade, the dimension of the Krylov spaces, and the images
# that are looked at together.
_DECADES, _N_KRYLOV, _SLICE = (-8, 2, 101), 100, 64
# Relative differences of errors and of nodes that are none, and the share of a mass that is.
_SAME, _AGREE, _NO_MASS = 1e-3, 0.01, 1e-9
# Pixels that all perturbations of an image together have, and the most perturbations: with one of 32 x 32
# pixels the estimate of a small ``m - df`` is off by 14 %, and its spurious minima cost 2 dB.
_ENOUGH, _MOST_PROBES = 4096, 4
# Share of the data that must be left to tell noise from signal, or cross-validation divides zero by zero.
_LEAST_FREE = 0.03


def weight_parameter(doc: str) -> Any:
    """Declare the weight ``lam`` of a regulariser; the text says what "discrepancy" does."""
    return parameter(
        default="auto",
        allowed=Real(ge=0) | OneOf("auto", "discrepancy"),
        doc=f"""
        Weight of the regulariser. "auto" chooses it for each image from its data alone, by Stein's risk
        estimate where the strength of the ``noise`` is known and by generalised cross-validation where it is
        not; the info of ``predict`` tells what was chosen. It perturbs images at random, in the order of
        their pixels: a turned image has a slightly different weight. {doc}""",
    )


@dataclass(frozen=True)
class Minimisation:
    """What is minimised for a weight, by primal-dual steps.

    Parameters
    ----------
    objective : callable
        Objective for a problem and a weight.
    variables, images : callable
        Maps from images to what is minimised over, and back.
    max_steps : int
        Largest number of steps for each weight, of which a hundred are enough.
    """

    objective: Callable[[Units, float | Tensor], Functional]
    variables: Callable[[Tensor], Tensor]
    images: Callable[[Tensor], Tensor]
    max_steps: int

    def path(self, z0: Tensor) -> PrimalDualPath:
        """The way through minimisers for one weight after the other."""
        return PrimalDualPath(z0, max_steps=min(self.max_steps, _MAX_STEPS), tol=_TOL)


@dataclass(frozen=True)
class Choice:
    """What was chosen for each image, free of units."""

    weight: Tensor
    noise_std: Tensor  # as given, or estimated
    x: Tensor  # the image at about this weight


def least_risk(units: Units, x0: Tensor, problem: Minimisation) -> Choice:
    """The weight at which further data of the same image would be predicted best, for each image.

    The mean square error of the prediction is estimated by ``(RSS + 2 sigma^2 df) / m`` where the noise level
    is known (Stein, 1981) and by ``m RSS / (m - df)^2`` where it is not (Golub, Heath and Wahba, 1979), with
    the residual sum of squares and the degrees of freedom ``df = tr d(A x)/dy``. Random perturbations of
    the data measure this trace (Ramani, Blu and Unser, 2008): each image is solved for together with twins.
    Of counts, whose variance is their mean, the error is ``(RSS + 2 tr y d(A x)/dy) / m`` up to a constant
    (Luisier, Blu and Unser, 2011).

    Weights fall by octaves until the estimate rises. From above, because solutions for large weights are
    found quickly and lead to the next ones, and because cross-validation has another, spurious minimum where
    everything is fitted: looking for the least value lost up to 10 dB in denoising.

    Parameters
    ----------
    units : Units
        The problem, with what is known of its noise.
    x0 : Tensor of shape (n, *dims)
        Starting points.
    problem : Minimisation
        What is minimised.
    """
    # In single precision rounding decides where the iteration stops, which changed images by a percent.
    units, size = _in_double_precision(units), units.size.double()
    n, error = len(x0), _PredictionError.of(units)
    data = torch.cat([units.data[:, None], error.perturbed()], 1)
    k = data.shape[1]
    copies = _repeated(units, data)
    path = problem.path(problem.variables(_doubled(x0).repeat_interleave(k, 0)).unflatten(0, (n, k)))
    x, found = x0.clone(), torch.zeros_like(size)
    errors = found[:, None].expand(n, len(_WEIGHTS)) + torch.inf
    active = torch.arange(n, device=x0.device)
    for i, weight in enumerate(_WEIGHTS):
        z = path.minimise(_Twins(problem.objective(copies, weight), k).select(active))
        group = problem.images(z.flatten(0, 1)).unflatten(0, (-1, k))
        image = group[:, 0]
        errors[active, i], level = error(image, group[:, 1:])
        best = errors[active].argmin(1)
        better = best == i
        x[active[better]], found[active[better]] = image[better].to(x.dtype), level[better]
        # The first weights may all make the image flat: they are equally good, and nothing has been seen yet.
        flat = errors[active, : i + 1].amax(1) - errors[active].amin(1) < _PLATEAU
        going = ((i - best < _PATIENCE) | flat).nonzero()[:, 0]
        active = active[going]
        if len(active) == 0:
            break
        path.select(going)
        error = error.select(going)
    return Choice(_vertex(errors).to(x.dtype.to_real()), found, x)


def weight_of_discrepancy(units: Units, x0: Tensor, problem: Minimisation) -> tuple[Tensor, Tensor]:
    """The weight at which the fidelity is what it is of the true image on average, for each image.

    The fidelity grows with the weight. Weights fall by octaves until it is small enough; then their
    logarithms are bisected.

    Returns
    -------
    weight : Tensor of shape (n,)
        The weights; the largest one where the flattest image explains the data.
    met : Tensor of shape (n,), bool
        Whether the fidelity came down to what was expected.
    """
    units = _in_double_precision(units)
    z0 = problem.variables(_doubled(x0))

    def explains(path: PrimalDualPath, weight: float | Tensor) -> Tensor:
        return units.explained_by(problem.images(path.minimise(problem.objective(units, weight))))

    low, found = torch.full_like(units.size, _WEIGHTS[-1]), torch.zeros_like(units.size, dtype=torch.bool)
    path = problem.path(z0)
    for weight in _WEIGHTS:
        enough = explains(path, weight)
        low, found = torch.where(enough & ~found, weight, low), found | enough
        if bool(found.all()):
            break
    high = (2 * low).clamp_max(_WEIGHTS[0])
    path = problem.path(z0)  # the other one has gone as far as the last of the images needs
    for _ in range(_N_BISECTIONS):
        middle = (low * high).sqrt()
        enough = explains(path, middle)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.to(x0.dtype), found


def least_error(units: Units) -> tuple[Tensor, Tensor]:
    """The weight of ``1/2 ||x||^2`` at which the image is best, and the noise level, for each image.

    All is known for all weights at once from a Krylov space of the data and one of a random image (Golub and
    von Matt, 1997). Where data hardly see some part of the image, as in deblurring, the weight of the best
    prediction amplifies noise: it lost 5 dB. It serves as a pilot ``p``: with the coefficients ``c_i`` of the
    image along the singular vectors, ``|c_i|^2 s_i^4 / (s_i^2 + p)^2`` is estimated without bias, and with it
    the error ``sum_i (lam / (s_i^2 + lam))^2 |c_i|^2 + sigma^2 s_i^2 / (s_i^2 + lam)^2``.

    An unknown ``sigma^2`` is the geometric mean of ``RSS / tr(I - H)``, too small on average, and
    the least ``RSS / tr (I - H)^2`` of smaller weights, too large, where ``H`` maps data to their prediction.
    """
    probe = _probe(units)
    moved = units.A(probe)
    n_data = _n_measured(units.data, moved)
    # The probes are one image but for their phase.
    nodes, mass = spectral_measure(units.A, moved[:1], max_steps=_N_KRYLOV)
    trace = _Form(nodes, _trace_share(probe, units.data) * mass)
    form = _Form(*spectral_measure(units.A, units.data, max_steps=_N_KRYLOV))
    variance = None if units.noise_std is None else units.noise_std.double().square()
    found = [
        _least_error(
            form.select(part), trace, n_data[part, None], None if variance is None else variance[part, None]
        )
        for part in torch.arange(len(probe), device=probe.device).split(_SLICE)
    ]
    weights, variances = zip(*found, strict=True)
    dtype = units.size.dtype
    return torch.cat(weights).to(dtype), torch.cat(variances).sqrt().to(dtype)


@dataclass(frozen=True)
class _Form:
    """``f -> sum_i w_i f(t_i)`` for each image: a quadratic form, or a trace over the data."""

    nodes: Tensor
    mass: Tensor

    def __call__(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        return (self.mass[:, None] * f(self.nodes[:, None])).sum(-1)

    def select(self, index: Tensor) -> Self:
        return replace(self, nodes=self.nodes[index], mass=self.mass[index])

    def single(self) -> Tensor:
        """Whether all nodes that count agree, (n, 1)."""
        counts = self.mass > _NO_MASS * self.mass.sum(1, keepdim=True)
        low = torch.where(counts, self.nodes, torch.inf).amin(1, keepdim=True)
        high = torch.where(counts, self.nodes, 0).amax(1, keepdim=True)
        return high - low <= _AGREE * high


def _least_error(form: _Form, trace: _Form, m: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and variance of the noise. The mass of the trace counts images: it holds a factor of ``t``."""
    lam = torch.logspace(*_DECADES, dtype=torch.float64, device=m.device)[:, None]
    rss = form(lambda t: (lam / (t + lam)).square())
    df = trace(lambda t: 1 / (t + lam))
    if variance is None:
        free = m - df
        errors = torch.where(free > _LEAST_FREE * m, rss / free.square(), torch.inf)
        at = _first_minimum(errors)
        squares = (m - trace(lambda t: (t + 2 * lam) / (t + lam).square())).clamp_min(_LEAST_FREE**2 * m)
        low, high = (rss / free).gather(1, at), rss / squares
        upto = torch.isfinite(errors) & (torch.arange(len(lam), device=m.device) <= at)
        variance = (low * torch.where(upto, high, torch.inf).amin(1, keepdim=True)).sqrt()
        # What is fitted best where all is fitted has no noise, and orthogonal maps tell nothing of it.
        first = torch.isfinite(errors).byte().argmax(1, keepdim=True)
        variance = torch.where((at > first) & ~(form.single() & trace.single()), variance, 0)
    else:
        at = _first_minimum(rss + 2 * variance * df)
    pilot = lam[at]
    signal = form(lambda t: (lam / (t + lam) / (t + pilot)).square() * t)
    noise = variance * trace(lambda t: (lam / (t + lam) / (t + pilot)).square())
    amplified = variance * trace(lambda t: 1 / (t + lam).square())
    best = _first_minimum((signal - noise).clamp_min(0) + amplified)
    return lam[best[:, 0], 0], variance[:, 0]


def _first_minimum(errors: Tensor) -> Tensor:
    """The smallest weight that is as good as any, (n, 1); all are, up to rounding, for an orthogonal map."""
    least = errors.amin(1, keepdim=True)
    return (errors <= least + _SAME * least.abs()).byte().argmax(1, keepdim=True)


@dataclass(frozen=True)
class _PredictionError:
    """Logarithms of the errors of images whose twins have seen perturbed data."""

    A: LinearMap
    data: Tensor
    signal: Tensor  # the data without the background of counts
    probes: Tensor  # (n, n_probes, *dims)
    n_data: Tensor
    noise_std: Tensor | None
    variances: Tensor | None  # of counts, relative to the largest one of an image
    largest: Tensor  # the largest one

    @classmethod
    def of(cls, units: Units) -> Self:
        n_probes = min(_MOST_PROBES, math.ceil(_ENOUGH / math.prod(units.A.dims)))
        probes = torch.stack([_probe(units, seed) for seed in range(n_probes)], 1)
        largest = units.data.abs().flatten(1).amax(1)
        counted = units.background is not None
        variances = units.data / expand(largest, units.data) if counted else None
        measured = _n_measured(units.data, units.A(probes[:, 0]))
        one_count = units.factor * units.size
        signal = units.data if units.background is None else units.data - units.background
        level = largest / one_count
        return cls(units.A, units.data, signal, probes, measured, units.noise_std, variances, level)

    def select(self, index: Tensor) -> Self:
        noise_std = None if self.noise_std is None else self.noise_std[index]
        return replace(
            self,
            data=self.data[index],
            signal=self.signal[index],
            probes=self.probes[index],
            n_data=self.n_data[index],
            noise_std=noise_std,
            variances=None if self.variances is None else self.variances[index],
            largest=self.largest[index],
        )

    def perturbed(self) -> Tensor:
        """The data of the twins; counts are moved in proportion to their variances, and remain positive."""
        moved = self.A(self.probes.flatten(0, 1)).unflatten(0, self.probes.shape[:2])
        if self.variances is None:
            return self.data[:, None] + _STEP * moved
        return (self.data[:, None] + _STEP * self.variances[:, None] * moved).clamp_min(0)

    def __call__(self, image: Tensor, twins: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the error, and the noise level."""
        m, rss = self.n_data, norm(self.A(image) - self.signal).double().square()
        moved = dot(self.probes, twins - image[:, None]).double() / (_STEP * twins.shape[1])
        df = _trace_share(image, self.data) * moved
        floor = torch.finfo(self.data.dtype).eps ** 2  # of noise-free data
        if self.variances is not None:
            return ((rss + 2 * self.largest * df) / m).clamp_min(floor).log(), self.largest.sqrt()
        if self.noise_std is not None:
            error = (rss + 2 * self.noise_std.double().square() * df) / m
            return error.clamp_min(floor).log(), self.noise_std
        free = m - df
        error = (m * rss / free.square()).clamp_min(floor).log()
        return torch.where(free > _LEAST_FREE * m, error, torch.inf), (rss / free.clamp_min(1)).sqrt()


def _vertex(errors: Tensor) -> Tensor:
    """The weight of least error, by a parabola through the logarithms around the smallest one."""
    best = errors.argmin(1)
    inner = best.clamp(1, len(_WEIGHTS) - 2)
    left, middle, right = (errors.gather(1, inner[:, None] + i)[:, 0] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    known = (best == inner) & torch.isfinite(bend) & (bend > 0)
    return _WEIGHTS[0] * 2.0 ** -(best + torch.where(known, (left - right) / (2 * bend), 0))


def _probe(units: Units, seed: int = 0) -> Tensor:
    """Random images of modulus one, the same whatever the data are, but for their phase.

    They are images, and the perturbation of data is what the operator makes of them: then nothing depends on
    the order of the data. A phase or sign of the data is one of the probe, and changes nothing else.
    """
    back = units.A.adjoint(units.data)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.rand(back.shape[1:], generator=generator, dtype=torch.float64, device="cpu").to(back.device)
    turn = turn if back.is_complex() else (2 * turn).floor() / 2
    circle = torch.polar(torch.ones_like(turn), 2 * math.pi * turn)
    probe = (circle if back.is_complex() else circle.real).to(back.dtype)
    along = (probe.conj() * back).flatten(1).sum(1)
    return expand(torch.where(along == 0, 1, torch.sgn(along)), back) * probe


def _trace_share(images: Tensor, data: Tensor) -> float:
    """From a trace over images to one over data, of which complex ones count once and not twice."""
    return (2 if images.is_complex() else 1) / (2 if data.is_complex() else 1)


def _n_measured(data: Tensor, others: Tensor) -> Tensor:
    """Number of data; what is zero whatever the image is, has not been measured."""
    return ((data != 0) | (others != 0)).flatten(1).sum(1).clamp_min(1).double()


def _doubled(x: Tensor) -> Tensor:
    """In double precision."""
    return x.to(torch.promote_types(x.dtype, torch.float64))


def _in_double_precision(units: Units) -> Units:
    """The same problem."""
    return replace(
        units,
        data=_doubled(units.data),
        size=_doubled(units.size),
        base=_doubled(units.base),
        noise_std=None if units.noise_std is None else _doubled(units.noise_std),
        background=None if units.background is None else _doubled(units.background),
    )


def _repeated(units: Units, data: Tensor) -> Units:
    """The problem for several data of each image, (n, k, *dimsd)."""
    k, background = data.shape[1], units.background
    return replace(
        units,
        data=data.flatten(0, 1),
        size=units.size.repeat_interleave(k),
        base=units.base.repeat_interleave(k),
        background=None if background is None else background.repeat_interleave(k, 0),
    )


class _Twins(Functional):
    """A functional of k n images as one of n groups, (n, k, *dims).

    The images of a group take the same steps and stop together: their differences are then derivatives of
    what was computed, however far the iteration has come.
    """

    def __init__(self, functional: Functional, k: int) -> None:
        self.functional, self.k = functional, k
        self.smooth, self.proximable = functional.smooth, functional.proximable

    def __call__(self, z: Tensor) -> Tensor:
        return self._summed(self.functional(z.flatten(0, 1)))

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return self._grouped(self.functional.prox(z.flatten(0, 1), self._each(step)))

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        return self._grouped(self.functional.prox_conjugate(u.flatten(0, 1), self._each(step)))

    def conjugate(self, u: Tensor) -> Tensor | None:
        value = self.functional.conjugate(u.flatten(0, 1))
        return None if value is None else self._summed(value)

    def split(self) -> tuple[Functional, LinearMap | None]:
        outer, linear = self.functional.split()
        return _Twins(outer, self.k), None if linear is None else _TwinMap(linear, self.k)

    def select(self, index: Tensor) -> Functional:
        each = self.k * index[:, None] + torch.arange(self.k, device=index.device)
        return _Twins(self.functional.select(each.flatten()), self.k)

    @property
    def summands(self) -> tuple[Functional, ...]:
        return tuple(_Twins(f, self.k) for f in self.functional.summands)

    def _grouped(self, z: Tensor) -> Tensor:
        return z.unflatten(0, (-1, self.k))

    def _summed(self, values: Tensor) -> Tensor:
        return self._grouped(values).sum(1)

    def _each(self, step: Tensor | float) -> Tensor | float:
        return step.repeat_interleave(self.k) if isinstance(step, Tensor) and step.ndim else step


class _TwinMap:
    """A linear map of groups."""

    def __init__(self, linear: LinearMap, k: int) -> None:
        self.linear, self.k = linear, k

    def __call__(self, z: Tensor) -> Tensor:
        return self.linear(z.flatten(0, 1)).unflatten(0, (-1, self.k))

    def adjoint(self, u: Tensor) -> Tensor:
        return self.linear.adjoint(u.flatten(0, 1)).unflatten(0, (-1, self.k))

    def norm(self) -> float:
        return self.linear.norm()
