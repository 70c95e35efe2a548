"""A check that an operator and its adjoint belong together."""

from __future__ import annotations

import numpy as np
import pylops
import torch
from torch import Tensor

from skinverse._tensors import dot, norm
from skinverse.operators._lowering import as_torch


def dot_test(op: pylops.LinearOperator, *, tol: float | None = None, random_state: int = 0) -> float:
    """Check ``<A x, y> = <x, A^H y>`` on random images and data.

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
        If the error is larger than ``tol``.
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
        return torch.randn((1, *shape), generator=generator, dtype=dtype, device="cpu")

    x = draw(A.dims, complex=False)
    y = draw(A.dimsd, complex=A(x).is_complex())
    if A.adjoint(y).is_complex():
        x = draw(A.dims, complex=True)
    Ax = A(x)
    # Data near A x make the inner products as large as the norms allow, and so the relative error meaningful.
    y = y + Ax * (norm(y) / norm(Ax).clamp_min(1e-30)).item()
    Ay = A.adjoint(y)
    size = torch.maximum(norm(Ax) * norm(y), norm(x) * norm(Ay)).item()
    error = abs((dot(Ax, y) - dot(x, Ay)).item()) / size if size else 0.0
    single = np.dtype(op.dtype) in (np.float32, np.complex64) or A.precision() == torch.float32
    allowed = tol if tol is not None else 1e-4 if single else 1e-8
    if not error <= allowed:
        raise ValueError(
            f"{op!r} fails its dot test: <Ax, y> and <x, A^H y> differ by {error:.1e}, "
            f"more than {allowed:.0e}; its adjoint does not belong to it"
        )
    return error
