"""A check that an operator and its adjoint belong together."""

from __future__ import annotations

import numpy as np
import pylops
import torch
from torch import Tensor

from skinverse._tensors import dot
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import length

# Two show an operator that returns an array of its own again and again.
_IMAGES = 2


def dot_test(op: pylops.LinearOperator, *, tol: float | None = None, random_state: int = 0) -> float:
    """Check ``<A x, y> = <x, A^H y>`` on two random images and data, and the torch map against the operator.

    Parameters
    ----------
    op : pylops.LinearOperator
        The operator.
    tol : float or None, default=None
        Largest relative error that is allowed; None is 1e-4 for operators in single precision and 1e-8 in
        double precision.
    random_state : int, default=0
        Seed of the images and data.

    Returns
    -------
    float
        The relative error.

    Raises
    ------
    ValueError
        If the error is larger than ``tol``, or the map of :func:`as_torch` differs by more from the operator.
    TypeError
        If ``op`` is not a pylops operator.

    Examples
    --------
    >>> import pylops
    >>> from skinverse.operators import dot_test
    >>> dot_test(pylops.FirstDerivative(5)) < 1e-8
    True
    """
    A, generator = as_torch(op), torch.Generator().manual_seed(random_state)

    def draw(shape: tuple[int, ...], *, complex: bool) -> Tensor:
        dtype = A.precision().to_complex() if complex else A.precision()
        return torch.randn((_IMAGES, *shape), generator=generator, dtype=dtype, device="cpu")

    x = draw(A.dims, complex=False)
    y = draw(A.dimsd, complex=A(x).is_complex())
    if A.adjoint(y).is_complex():
        x = draw(A.dims, complex=True)
    Ax = A(x)
    # Data near A x make the inner products as large as the norms allow, and so the relative error meaningful.
    y = y + Ax * (length(y) / length(Ax)) if length(Ax) else y
    Ay = A.adjoint(y)
    error = _mismatch(x, Ax, y, Ay)
    single = np.dtype(op.dtype) in (np.float32, np.complex64) or A.precision() == torch.float32
    allowed = tol if tol is not None else 1e-4 if single else 1e-8
    if not error <= allowed:
        raise ValueError(
            f"{op!r} fails its dot test: <Ax, y> and <x, A^H y> differ by {error:.1e}, "
            f"more than {allowed:.0e}; its adjoint does not belong to it"
        )
    own = _distance(Ax, op, x)
    if not own <= allowed:
        raise ValueError(
            f"{op!r} gives other data by its torch map, for a batch, than by itself, image by image: they "
            f"differ by {own:.1e}, more than {allowed:.0e}"
        )
    return error


def _mismatch(x: Tensor, Ax: Tensor, y: Tensor, Ay: Tensor) -> float:
    """``|<Ax, y> - <x, A^H y>|`` of the worst image, relative to the norms."""
    # Scaled first, for the products of operators of 1e-30 are zero in single precision.
    sizes = max(length(Ax) * length(y), length(x) * length(Ay))
    if sizes == 0:
        return 0.0
    forwards = dot(Ax / (length(Ax) or 1.0), y / length(y)).double() * (length(Ax) * length(y) / sizes)
    backwards = dot(x / length(x), Ay / (length(Ay) or 1.0)).double() * (length(x) * length(Ay) / sizes)
    return float((forwards - backwards).abs().max()) * _IMAGES


def _distance(Ax: Tensor, op: pylops.LinearOperator, x: Tensor) -> float:
    """Relative distance of the torch map from the operator itself, as users call it, image by image."""
    images = [np.array(image.numpy()).ravel() for image in x]
    # Not `matvec`, which notes the shape and a count on the operator.
    own = torch.from_numpy(np.stack([np.array(op._matvec(image), dtype=complex).ravel() for image in images]))
    size = length(own)
    return length(Ax.flatten(1).to(own.dtype) - own) / size if size else length(Ax)
