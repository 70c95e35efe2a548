"""Promises on what does not change a result: units, the form of the operator, a level, a phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pylops

from skinverse._checks._expect import expect, expect_refusal, relative_difference
from skinverse._checks._promise import promise
from skinverse._checks._subject import Array, Problem, Reconstructions, Subject, smooth_images
from skinverse.noise import Gaussian

# Relative change that is none: of what is trained in single precision, and of what is solved for tightly.
_LEARNED, _COMPUTED = 1e-3, 1e-5
# The small one first: it tells the powers of lam apart where a large one hides them.
_FACTORS = (1e-3, 1e3)
# In single precision squares of these are near its limits, and what is solved for tightly is so to 1e-3.
_EXTREME_FACTORS, _SINGLE = (1e-12, 1e12), 1e-3
# Constants, in standard deviations of the images.
_LEVELS = (1.0, 100.0, 1000.0)


@promise()
def units(subject: Subject) -> None:
    """Images and data times 1e-12 to 1e12 give the image times it, with ``lam`` times some power of it."""
    operator, images, data = subject.compared_problem

    def scaled(factor: float) -> Problem:
        return Problem(operator, factor * images, factor * data)

    _expect_factors_harmless(subject, scaled, lambda x, factor: x / factor, "images and data")


@promise()
def units_of_operator(subject: Subject) -> None:
    """Operator and data times 1e-12 to 1e12 give the same image, with ``lam`` times some power of it."""
    operator, images, data = subject.compared_problem

    def scaled(factor: float) -> Problem:
        return Problem(factor * operator, images, factor * data)

    _expect_factors_harmless(subject, scaled, lambda x, _: x, "operator and data")


@promise()
def form(subject: Subject) -> None:
    """A map that is written in another form, as a product or a stack, is the same operator."""
    operator, images, data = subject.compared_problem
    n, rows = operator.shape[0], data.reshape(len(data), -1)
    rng = np.random.default_rng(0)
    order = rng.permutation(n)
    halves = [pylops.Restriction(n, part) @ operator for part in np.array_split(np.arange(n), 2)]
    # Weights of rows and pixels, also negative ones, that cancel.
    (left, right), (outer, inner) = (
        [pylops.Diagonal(w) for w in (d, 1 / d)]
        for d in (rng.choice([-1.0, 1.0], size) * rng.uniform(0.5, 2, size) for size in operator.shape)
    )
    forms = {
        "written as a product": (left @ (right @ (operator @ outer)) @ inner, rows),
        "with its rows in another order": (pylops.Restriction(n, order) @ operator, rows[:, order]),
        "stacked from two halves": (pylops.VStack(halves), rows),
    }
    expected = subject.compared_images
    for otherwise, (other, values) in forms.items():
        other.dims = operator.dims
        problem = Problem(other, images, values.reshape(-1, *other.dimsd))
        found = subject.solved(subject.fit_steadily(problem), problem.data)
        _expect_none(subject, found, expected, f"the operator {otherwise} changes the reconstruction")


@promise(made_by=lambda subject: subject.has("noise") and not subject.counted)
def weights(subject: Subject) -> None:
    """Weights of the noise do what an operator and data with their roots do, or are refused."""
    operator, images, data = subject.compared_problem
    roots = np.sqrt(np.random.default_rng(0).uniform(0.5, 2, operator.dimsd))

    def weighted() -> Reconstructions:
        model = subject.fit_steadily(subject.compared_problem, noise=Gaussian(weights=roots**2))
        found = subject.solved(model, data)
        found.make(True)  # where it would be refused
        return found

    try:
        found = weighted()
    except ValueError:
        expect_refusal(weighted, "weights", naming="noise", kinds=ValueError)
        return
    whitened = Problem(
        pylops.Diagonal(roots.ravel()) @ operator, images, (roots * data).reshape(len(data), -1)
    )
    whitened.operator.dims = operator.dims
    expected = subject.solved(subject.fit_steadily(whitened, noise=None), whitened.data)
    _expect_none(
        subject, found, expected, "weights in the place of an operator with them change the reconstruction"
    )


@promise(made_by=lambda subject: not subject.counted)
def level(subject: Subject) -> None:
    """A constant that is added to images, and seen in the data, is added to the reconstruction."""
    images = smooth_images(2, (6, 6))
    operator = pylops.Identity(images.shape[1:], dtype=images.dtype)
    _expect_levels_harmless(subject, Problem(operator, images, subject.measured(operator, images)), _LEVELS)
    # Without learning from images, what an operator sees of a constant is part of the image.
    if subject.learns:
        _expect_levels_harmless(subject, subject.compared_problem, _LEVELS[-1:])


def _expect_levels_harmless(subject: Subject, problem: Problem, levels: tuple[float, ...]) -> None:
    """Expect no change by constants."""
    operator, images, data = problem
    seen = (operator @ np.ones(operator.shape[1], images.dtype)).reshape(operator.dimsd)

    def raised(constant: float) -> Reconstructions:
        """What varies: the size of the constant does not count, nor that of the mean."""
        problem = Problem(operator, images + constant, data + constant * seen)
        found = subject.solved(subject.fit_steadily(problem), problem.data)
        return found.mapped(lambda x: (x - constant - images.mean())[None])

    expected = raised(0.0)
    for multiple in levels:
        found = raised(multiple * float(images.std()))
        _expect_none(subject, found, expected, f"a level of {multiple:g} changes the rest of the image")


@promise(made_by=lambda subject: not subject.counted)
def phase(subject: Subject) -> None:
    """A global phase of complex data is the phase of the reconstruction."""
    problem = subject.problem
    if not np.iscomplexobj(problem.images):
        problem = _denoising(subject, smooth_images(2, (6, 6), complex_=True))
    model, turn = subject.fit(problem), np.exp(0.7j)
    found, expected = (subject.solved(model, data) for data in (turn * problem.data, problem.data))
    _expect_none(subject, found, expected.mapped(lambda x: turn * x), "a phase changes the reconstruction")


def _expect_factors_harmless(
    subject: Subject,
    scaled: Callable[[float], Problem],
    back: Callable[[Array, float], Array],
    what: str,
) -> None:
    """Expect no change by factors, for some power of them by which the weight may go with them."""

    def fitted(problem: Problem, factor: float, power: int) -> Any:
        return subject.fit_steadily(problem, **_rescaled(subject, factor, power))

    def found(model: Any, problem: Problem, factor: float) -> Reconstructions:
        wide = _wide(problem)
        return subject.solved(model, problem.data).mapped(lambda x: back(x.astype(wide), factor))

    expected, (first, second) = subject.compared_images, _FACTORS
    small, weighted = scaled(first), isinstance(subject.parameters.get("lam"), (int, float))
    by_power, changes = {}, {}
    for power in (0, 1, 2, -1, -2) if weighted else (0,):
        by_power[power] = found(fitted(small, first, power), small, first)
        changes[power] = relative_difference(by_power[power].make(True), expected.make(True))
        if changes[power] <= _allowed(subject):
            break
    power = min(changes, key=lambda power: changes[power])
    told = f" and lam times its power {power}" if weighted else ""
    _expect_none(subject, by_power[power], expected, f"{what} times {first:g}{told} change the image")
    if not subject.learns:  # what is learned is compared as strictly at the extremes
        large = scaled(second)
        otherwise = f"{what} times {second:g}{told} change the image"
        _expect_none(subject, found(fitted(large, second, power), large, second), expected, otherwise)
    for factor in _EXTREME_FACTORS:
        far = _in_single_precision(scaled(factor))
        otherwise = f"{what} times {factor:g} in single precision{told} change the image"
        _expect_none(subject, found(fitted(far, factor, power), far, factor), expected, otherwise, _SINGLE)


def _in_single_precision(problem: Problem) -> Problem:
    operator, *arrays = problem
    images, data = (a.astype(np.complex64 if a.dtype.kind == "c" else np.float32) for a in arrays)
    return Problem(operator, images, data)


def _wide(problem: Problem) -> type:
    """The type of images in double precision."""
    return np.complex128 if problem.images.dtype.kind == "c" else np.float64


def _denoising(subject: Subject, images: Array) -> Problem:
    identity = pylops.Identity(images.shape[1:], dtype=images.dtype)
    return Problem(identity, images, subject.measured(identity, images))


def _expect_none(
    subject: Subject,
    found: Reconstructions,
    expected: Reconstructions,
    otherwise: str,
    most: float | None = None,
) -> None:
    """Expect no change of images."""
    most = _allowed(subject) if most is None else most
    change = found.change_from(expected, most)
    expect(change <= most, f"{otherwise} by {change:.1e} relative, more than {most:.0e}")


def _allowed(subject: Subject) -> float:
    return _LEARNED if subject.learns else _COMPUTED


def _rescaled(subject: Subject, factor: float, power: int) -> dict[str, Any]:
    """Parameters with units in the new ones."""
    known = subject.parameters
    weight, bounds = known.get("lam"), known.get("bounds")
    scaled: dict[str, Any] = {}
    if isinstance(weight, (int, float)):
        scaled["lam"] = weight * factor**power
    for name in ("noise", "noise__gain", "noise__std", "noise__background", "noise__offset"):
        if isinstance(known.get(name), (int, float, np.ndarray)):
            scaled[name] = known[name] * factor
    if bounds is not None:
        scaled["bounds"] = tuple(end if end is None else end * factor for end in bounds)
    return scaled
