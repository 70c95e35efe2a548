"""The parameters of an operator, and other operators that differ from it in some of them only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pylops import LinearOperator

from skinverse.operators import _arguments as kinds
from skinverse.operators._entries import ENTRIES, NAMES
from skinverse.operators._recipes import rebuilt

# Arguments that may differ from one image to another, of operators that are no families: what an instrument
# did, and neither sizes and types nor conventions.
_PARAMETERS = {
    "Diagonal": ("diag",),
    "MatrixMult": ("A",),
    "Sampling": ("mask",),
    "Sensitivities": ("coil_maps",),
    "NonuniformTransform": ("trajectory", "density"),
    "Convolve1D": ("h",),
    "Convolve2D": ("h",),
    "ConvolveND": ("h",),
    "Convolution": ("psf",),
    "GaussianConvolution": ("sigma",),
    "CT2D": ("thetas",),
    "scaled": ("alpha",),
}


def parameter_names(operator: LinearOperator) -> tuple[str, ...]:
    """Names of the parameters of an operator and of those that it is composed of.

    A family's are its ``parameters``; those of other operators are arguments of their constructor: ``psf`` of
    :func:`convolution`, ``angles`` and ``offset`` of :func:`parallel_beam`, ``diag`` of ``pylops.Diagonal``.
    A name that two parts of a composition have is not among them: it would not tell which of them is meant.

    Parameters
    ----------
    operator : pylops.LinearOperator
        Any operator; one that is unknown to the package has none.

    Returns
    -------
    tuple of str
        Names for :func:`with_parameters`.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import fourier_sampling, parameter_names
    >>> parameter_names(fourier_sampling(np.ones(4, bool), np.ones((2, 3, 4))))
    ('mask', 'coil_maps')
    """
    counts = Counter(_names_in(operator))
    return tuple(name for name, number in counts.items() if number == 1)


def with_parameters(operator: LinearOperator, values: Mapping[str, Any]) -> LinearOperator:
    """The operator with other values of some of its parameters.

    Parameters
    ----------
    operator : pylops.LinearOperator
        The operator, which stays as it is.
    values : dict
        Values by the names of :func:`parameter_names`.

    Returns
    -------
    pylops.LinearOperator
        Another operator between images and data of the same shapes. What does not change is shared.

    Raises
    ------
    ValueError
        If the operator has no such parameter, cannot have the value, or would have another shape with it.

    Examples
    --------
    >>> from skinverse.operators import gaussian_blur, with_parameters
    >>> A = 2.0 * gaussian_blur((16, 16), 1.0)
    >>> with_parameters(A, {"sigma": 2.0}).dims
    (16, 16)
    """
    unknown = sorted(set(values) - set(parameter_names(operator)))
    if unknown:
        known = ", ".join(parameter_names(operator)) or "none"
        raise ValueError(f"operator: {operator!r} has no parameter {unknown[0]!r}, it has {known}")
    changed = _changed(operator, values)
    if changed.shape != operator.shape:
        raise ValueError(
            f"{', '.join(values)}: expected an operator of shape {tuple(operator.shape)}, got one of shape "
            f"{tuple(changed.shape)}"
        )
    return changed


def _names_in(operator: LinearOperator) -> Iterator[str]:
    """Names of all parameters in a tree of operators."""
    family = getattr(operator, "parameters", None)
    if family is not None:
        yield from family
    elif type(operator) in NAMES:
        kind = NAMES[type(operator)]
        yield from _PARAMETERS.get(kind, ())
        for value in ENTRIES[kind].arguments(operator).values():
            for part in _operators_of(value):
                yield from _names_in(part)


def _changed(operator: LinearOperator, values: Mapping[str, Any]) -> LinearOperator:
    """The operator itself where it has none of these parameters."""
    if not set(_names_in(operator)) & set(values):
        return operator
    family: Any = operator
    if hasattr(operator, "parameters"):
        return family.with_parameters({k: v for k, v in values.items() if k in family.parameters})
    kind = NAMES[type(operator)]
    arguments = ENTRIES[kind].arguments(operator)
    new = {name: _with_parts_changed(value, values) for name, value in arguments.items()}
    own = {name: _like(values[name], arguments[name]) for name in _PARAMETERS.get(kind, ()) if name in values}
    return rebuilt(operator, kind, new | own)


def _with_parts_changed(argument: Any, values: Mapping[str, Any]) -> Any:
    """An argument, with the operators in it changed."""
    changed = [_changed(part, values) for part in _operators_of(argument)]
    if not changed:
        return argument
    return changed if isinstance(argument, list) else changed[0]


def _like(value: Any, known: Any) -> Any:
    """A new value in the type of the known one: integers may be real numbers, and one number all of them."""
    array = np.asarray(value)
    if not isinstance(known, np.ndarray):
        return array.item() if array.ndim == 0 else value
    array = np.full_like(known, array) if array.ndim == 0 else array
    return array.astype(known.dtype) if array.dtype.kind in "iuf" and known.dtype.kind in "fc" else array


def _operators_of(value: Any) -> list[LinearOperator]:
    """The operators that an argument is or holds."""
    return [part for part in (value if isinstance(value, list) else [value]) if kinds.OPERATOR.fits(part)]
