"""The rules by which pylops operators are lowered."""

from __future__ import annotations

import copyreg
from typing import Any

import numpy as np
import pylops
import scipy.sparse as sp
from pylops import basicoperators as basic
from pylops import linearoperator as tree
from pylops.medical import CT2D, MRI2D
from pylops.signalprocessing import DCT, Convolve1D, Convolve2D, ConvolveND, fft, fft2d, fftnd
from pylops.signalprocessing.convolve1d import _Convolve1Dshort

from skinverse.operators import _circulant as convolutions
from skinverse.operators import _leaves as leaves
from skinverse.operators._coils import Sensitivities
from skinverse.operators._composite import (
    Addition,
    Adjoint,
    BlockDiagonal,
    Conjugate,
    PartOf,
    Scaling,
    SideBySide,
    Stack,
)
from skinverse.operators._lowering import lower, register
from skinverse.operators._map import Composition, LinearMap
from skinverse.operators._sampling import Sampling
from skinverse.operators._sparse import SparseMap
from skinverse.operators._transforms import Cosine, Fourier


# ---------------------------------------------------------------- the tree
@register(tree._ProductLinearOperator)
def _(op: Any) -> LinearMap:
    return Composition(tuple(lower(factor) for factor in op.args))


@register(tree._SumLinearOperator)
def _(op: Any) -> LinearMap:
    return Addition(tuple(lower(term) for term in op.args))


@register(tree._ScaledLinearOperator)
def _(op: Any) -> LinearMap:
    return Scaling(op.args[1], lower(op.args[0]))


@register(tree._PowerLinearOperator)
def _(op: Any) -> LinearMap:
    base, exponent = op.args
    return Composition((lower(base),) * exponent) if exponent else leaves.Identity(base.dims, base.dims)


@register(tree._AdjointLinearOperator)
def _(op: Any) -> LinearMap:
    return Adjoint(lower(op.A))


@register(tree._TransposedLinearOperator)
def _(op: Any) -> LinearMap:
    return Conjugate(Adjoint(lower(op.A)))


@register(tree._ConjLinearOperator)
def _(op: Any) -> LinearMap:
    return Conjugate(lower(op.Op))


@register(tree._RealImagLinearOperator)
def _(op: Any) -> LinearMap:
    return PartOf(lower(op.Op), real=op.real, forwards=op.forw, backwards=op.adj)


@register(pylops.VStack)
def _(op: Any) -> LinearMap:
    if all(type(block) is pylops.Diagonal and block.diag.shape == op.ops[0].dims for block in op.ops):
        return leaves.Diagonals(np.stack([block.diag for block in op.ops]), op.dims, op.dimsd)
    return Stack(tuple(lower(block) for block in op.ops), op.dims, op.dimsd)


@register(Sensitivities)
def _(op: Any) -> LinearMap:
    return leaves.Diagonals(op.coil_maps, op.dims, op.dimsd)


@register(pylops.HStack)
def _(op: Any) -> LinearMap:
    return SideBySide(tuple(lower(block) for block in op.ops), op.dims, op.dimsd)


@register(pylops.BlockDiag)
def _(op: Any) -> LinearMap:
    return BlockDiagonal(tuple(lower(block) for block in op.ops), op.dims, op.dimsd)


@register(pylops.LinearOperator, pylops.Gradient, pylops.Laplacian, MRI2D, Convolve1D)
def _(op: Any) -> LinearMap | None:
    """Operators that wrap another one; one of SciPy is applied by pylops."""
    inner = getattr(op, "Op", None)
    return lower(inner) if isinstance(inner, pylops.LinearOperator) else None


# ---------------------------------------------------------------- leaves
@register(pylops.Identity)
def _(op: Any) -> LinearMap:
    return leaves.Identity(op.dims, op.dimsd)


@register(pylops.Zero)
def _(op: Any) -> LinearMap:
    return leaves.Zero(op.dims, op.dimsd)


@register(pylops.Diagonal)
def _(op: Any) -> LinearMap:
    return leaves.Diagonal(op.diag, op.dims)


@register(pylops.Restriction)
def _(op: Any) -> LinearMap:
    return leaves.Restriction(op.iava, op.axis, op.dims, op.dimsd)


@register(Sampling)
def _(op: Any) -> LinearMap:
    return leaves.Sampling(op.mask, op.dims)


@register(pylops.MatrixMult)
def _(op: Any) -> LinearMap | None:
    others = tuple(op.otherdims) if op.reshape else ()
    dims, dimsd = ((size, *others) for size in reversed(op.A.shape))  # op.dims may have been given since
    if not sp.issparse(op.A):
        return leaves.Matrix(op.A, dims, dimsd)
    matrix, n_others = sp.csr_array(op.A), int(np.prod(others))
    return SparseMap(matrix if n_others == 1 else sp.kron(matrix, sp.eye_array(n_others)), dims, dimsd)


@register(pylops.FirstDerivative, pylops.SecondDerivative)
def _(op: Any) -> LinearMap:
    n = int(op.dims[op.axis])
    options = {"sampling": op.sampling, "kind": op.kind, "edge": op.edge}
    if type(op) is pylops.FirstDerivative:
        options["order"] = op.order
    return leaves.Bands(_diagonals(type(op)(n, **options).matvec, n), op.axis, op.dims)


def _diagonals(matvec: Any, n: int, reach: int = 4) -> dict[int, np.ndarray]:
    """Diagonals of a band matrix by its products with combs, whose teeth are too far apart to overlap.

    The stencils of pylops reach two pixels, at the border as well.
    """
    period = 2 * reach + 1
    rows = np.arange(n)
    products = np.stack([matvec((rows % period == k).astype(float)) for k in range(period)])
    diagonals = {}
    for k in range(-min(reach, n - 1), min(reach, n - 1) + 1):
        i = rows[max(-k, 0) : n - max(k, 0)]
        diagonals[k] = products[(i + k) % period, i]
    return {k: diagonal for k, diagonal in diagonals.items() if diagonal.any()}


@register(pylops.Flip)
def _(op: Any) -> LinearMap:
    return leaves.Flip(op.axis, op.dims)


@register(pylops.Roll)
def _(op: Any) -> LinearMap:
    return leaves.Roll(op.shift, op.axis, op.dims)


@register(pylops.Transpose)
def _(op: Any) -> LinearMap:
    return leaves.Transpose(op.axes, op.dims, op.dimsd)


@register(pylops.Pad)
def _(op: Any) -> LinearMap:
    return leaves.Pad(op.pad, op.dims, op.dimsd)


@register(pylops.Sum)
def _(op: Any) -> LinearMap:
    return leaves.Sum(op.axis, op.dims, op.dimsd)


@register(pylops.Real)
def _(op: Any) -> LinearMap:
    return leaves.Real(op.dims, op.dimsd)


@register(pylops.Imag)
def _(op: Any) -> LinearMap:
    return leaves.Imaginary(op.dims, op.dimsd)


@register(basic.Conj)
def _(op: Any) -> LinearMap:
    return Conjugate(leaves.Identity(op.dims, op.dimsd))


# ---------------------------------------------------------------- transforms
@register(fft._FFT_numpy, fft._FFT_scipy)
def _(op: Any) -> LinearMap:
    before, after = (op.axis,) * bool(op.ifftshift_before), (op.axis,) * bool(op.fftshift_after)
    return _fourier(op, (op.axis,), (op.nfft,), before, after)


@register(fft2d._FFT2D_numpy, fft2d._FFT2D_scipy, fftnd._FFTND_numpy, fftnd._FFTND_scipy)
def _(op: Any) -> LinearMap:
    axes = np.asarray(op.axes)
    before, after = tuple(axes[np.asarray(op.ifftshift_before)]), tuple(axes[np.asarray(op.fftshift_after)])
    return _fourier(op, tuple(axes), tuple(op.nffts), before, after)


def _fourier(
    op: Any, axes: tuple[int, ...], sizes: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> LinearMap:
    def from_end(some: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(axis) % len(op.dims) - len(op.dims) for axis in some)

    n = float(np.prod(sizes))
    # pylops 2.8 divides by the root of n there.
    one_over_n = (
        float(op._scale) if type(op) is fft2d._FFT2D_scipy and op.norm.name == "ONE_OVER_N" else 1 / n
    )
    return Fourier(
        op.dims,
        op.dimsd,
        axes=from_end(axes),
        sizes=tuple(int(size) for size in sizes),
        scale={"ORTHO": n**-0.5, "NONE": 1.0, "ONE_OVER_N": one_over_n}[op.norm.name],
        half=op.real,
        real=not op.clinear,
        before=from_end(before),
        after=from_end(after),
    )


@register(DCT)
def _(op: Any) -> LinearMap | None:
    axes = range(len(op.dims)) if op.axes is None else np.atleast_1d(op.axes)
    cosine = Cosine(op.dims, tuple(int(axis) % len(op.dims) - len(op.dims) for axis in axes))
    return {2: cosine, 3: Adjoint(cosine)}.get(op.type)


@register(Convolve2D, ConvolveND)
def _(op: Any) -> LinearMap:
    return _convolution(op)


def _convolution(op: Any) -> LinearMap:
    """Zero outside; pylops pads the filter with zeros until its origin is its middle."""
    kernel = np.asarray(op.h)
    return convolutions.zero(kernel, tuple((size - 1) // 2 for size in kernel.shape), tuple(op.dims))


@register(_Convolve1Dshort)
def _(op: Any) -> LinearMap | None:
    one_filter = all(size == 1 for axis, size in enumerate(np.shape(op.h)) if axis != op.axis % len(op.dims))
    return _convolution(op) if one_filter else None


# ---------------------------------------------------------------- astra
@register(CT2D)
def _(op: Any) -> LinearMap | None:
    if op.engine != "cpu":
        return None
    import astra

    matrix = astra.projector.matrix(op.projector_id)
    try:
        return SparseMap(sp.csr_array(astra.matrix.get(matrix)), op.dims, op.dimsd)
    finally:
        astra.matrix.delete(matrix)


def _reduce_ct2d(op: Any) -> tuple[Any, ...]:
    """Rebuild from the parameters, since the objects of astra exist in this process only."""
    names = (
        "dims",
        "det_width",
        "det_count",
        "thetas",
        "proj_geom_type",
        "source_origin_dist",
        "origin_detector_dist",
    )
    values = {name: getattr(op, name) for name in names}
    values |= {
        "projector_type": op.projector_type.removesuffix("_fanflat"),
        "engine": op.engine,
        "dtype": op.dtype,
    }
    return _rebuild_ct2d, (values,)


def _rebuild_ct2d(values: dict[str, Any]) -> CT2D:
    return CT2D(**values)


# Otherwise a copy would share the projector of the original, and destroy it at its own end.
copyreg.pickle(CT2D, _reduce_ct2d)
