"""Parameters that several methods declare: noise, bounds, sizes of pixels, steps and tolerance."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from skinverse._parameters import (
    Bounds,
    Constraint,
    Elements,
    Instance,
    Integer,
    Null,
    OneOf,
    Real,
    parameter,
)
from skinverse.noise import Gaussian, NoiseModel, Poisson


class _Deviation(Real):
    """A number that stands for Gaussian noise."""

    expected = "a standard deviation > 0"


class _Distances(Elements):
    """Numbers above zero, also as an array, as readers of many formats give them."""

    def allows(self, value: Any) -> bool:
        return super().allows(list(value) if isinstance(value, np.ndarray) and value.ndim == 1 else value)


_GAUSSIAN: Constraint = _Deviation(gt=0) | Instance(Gaussian, name="Gaussian")
_COUNTS: Constraint = OneOf("poisson") | Instance(Poisson, name="Poisson")
# What each kind of noise allows, and how it is told.
_NOISE: dict[type, tuple[Constraint, str]] = {
    Gaussian: (
        _GAUSSIAN,
        """
        Noise of the measurements: its standard deviation in data units, of complex data that of the real part
        and of the imaginary part, each, or a :class:`~skinverse.noise.Gaussian` with weights. None is noise
        of unknown strength.""",
    ),
    Poisson: (
        _COUNTS,
        """
        Noise of the measurements: ``"poisson"``, or a :class:`~skinverse.noise.Poisson` or
        :class:`~skinverse.noise.PoissonGaussian` with the data units of one count and an expected background.
        None is ``"poisson"``.""",
    ),
    NoiseModel: (
        _GAUSSIAN | _COUNTS,
        """
        Noise of the measurements: a model of :mod:`skinverse.noise`, ``"poisson"`` for counts, or the
        standard deviation of Gaussian noise in data units, of complex data that of the real part and of the
        imaginary part, each. The fidelity ``D`` is its negative log-likelihood. None is Gaussian noise of
        unknown strength, with ``D = 1/2 ||A x - y||^2``.""",
    ),
}


_SQUARES = """
    Noise of the measurements: a model of :mod:`skinverse.noise`, ``"poisson"`` for counts, or the standard
    deviation of Gaussian noise in data units, of complex data that of the real part and of the imaginary
    part, each. None is Gaussian noise of unknown strength. Of counts, ``D`` is the negative log-likelihood
    expanded at the data to second order, ``1/2 sum_i w_i (A x + background - y)_i^2``: ``1 / w_i`` is the
    variance that ``y_i`` itself tells, at least that of one count. Where counts are few, this is biased."""
# What makes a method of squares, whose weight is learned, of these weights.
RELATIVE = """
    Only ratios of the weights matter. Data that are darker than images of the level ``level_`` are on average
    all have the same, since the weights of the darkest data are too noisy to be of use. A training on pairs
    makes up for the bias."""
# What bounds are where nobody says.
OF_COUNTS = (
    "None is no bound, but non-negativity where the noise is that of counts; ``(None, None)`` is none there."
)


def noise_parameter(purpose: str = "", *, kind: type = NoiseModel) -> Any:
    """Declare the noise of measurements, of some kind of model, and what it is for."""
    return _noise(*_NOISE[kind], purpose)


def noise_of_squares_parameter(purpose: str) -> Any:
    """Declare the noise of measurements for a method whose data term is quadratic, and what it is for."""
    return _noise(_GAUSSIAN | _COUNTS, _SQUARES, purpose)


def _noise(allowed: Constraint, models: str, purpose: str) -> Any:
    doc = f"{inspect.cleandoc(models)} {inspect.cleandoc(purpose)}".strip()
    return parameter(default=None, allowed=allowed | Null(), doc=doc)


def bounds_parameter(otherwise: str = "None is no bound.") -> Any:
    """Declare an interval that the values of images keep to, and what None is."""
    return parameter(
        default=None,
        allowed=Bounds() | Null(),
        doc=f"""
        Interval to which the values of the images are confined, None for a side without bound;
        ``(0, None)`` is non-negativity. {otherwise}""",
    )


def spacing_parameter() -> Any:
    """Declare the distances of pixels, which differences are divided by."""
    return parameter(
        default=None,
        allowed=_Distances(Real(gt=0), name="numbers > 0") | Null(),
        doc="""
        Distances of neighbouring pixels along each axis of space, in any unit of length; None is 1 along all
        of them. Differences are divided by them, so that slices twice as far apart may differ twice as much.
        With all distances times ``c``, ``c`` times the same number ``lam`` gives the same image.""",
    )


def max_steps_parameter(default: int, doc: str = "Largest number of iterations.") -> Any:
    """Declare the largest number of iterations of a solver."""
    return parameter(default=default, allowed=Integer(ge=1), doc=doc)


def tol_parameter(default: float, doc: str) -> Any:
    """Declare the tolerance at which a solver stops an image."""
    return parameter(default=default, allowed=Real(ge=0), doc=doc)
