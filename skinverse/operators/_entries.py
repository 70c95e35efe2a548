"""The constructor of each operator that can be stored, where its arguments are found, what they may be.

pylops keeps most constructor arguments as attributes of the same name; the entries below say where the
others are found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pylops
import scipy.sparse
from pylops import LinearOperator, linearoperator, medical, signalprocessing
from pylops.signalprocessing import fft, fft2d, fftnd
from pylops.signalprocessing._baseffts import _FFTNorms

from skinverse.operators import _arguments as kinds
from skinverse.operators._arguments import Kind
from skinverse.operators._astra import AstraProjector, from_astra
from skinverse.operators._circulant import BOUNDARIES
from skinverse.operators._coils import Sensitivities
from skinverse.operators._convolution import Convolution, GaussianConvolution, gaussian_blur
from skinverse.operators._fan_beam import FanBeam, fan_beam
from skinverse.operators._mbirtorch import MbirtorchProjector
from skinverse.operators._nonuniform import MAX_FREQUENCY, NonuniformTransform
from skinverse.operators._offsets import AngleOffset, DetectorOffset
from skinverse.operators._parallel_beam import ParallelBeam, parallel_beam
from skinverse.operators._parametric import GaussianBlur
from skinverse.operators._sampling import Sampling

Arguments = dict[str, Any]

# An operator that consists of more parts is not stored; a part counts as often as it is applied.
MAX_PARTS = 2**16


class Entry(NamedTuple):
    """How operators of some types are described, checked and rebuilt."""

    types: tuple[type, ...]
    make: Callable[..., LinearOperator]
    arguments: Callable[[Any], Arguments]  # of `make`, found on an operator
    kinds: dict[str, Kind]  # what each argument may be
    options: tuple[str, ...] = ()  # arguments that may be missing
    held: Callable[[Arguments], int] = lambda arguments: 0  # bytes besides the arrays among the arguments
    fits: Callable[[Arguments], bool] = lambda arguments: True  # whether the arguments fit one another


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _same(*names: str) -> Callable[[Any], Arguments]:
    """Arguments that are attributes of the same name, besides ``dims`` and ``dtype``."""
    return lambda op: {"dims": _ints(op.dims)} | _typed(op) | {name: getattr(op, name) for name in names}


def _typed(op: Any) -> Arguments:
    return {"dtype": np.dtype(op.dtype)}


def _sizes(op: Any) -> Arguments:
    return {"N": _ints(op.dimsd), "M": _ints(op.dims)} | _typed(op)


def _diagonal(op: Any) -> Arguments:
    if op.diag.shape == tuple(op.dims):
        return {"diag": op.diag} | _typed(op)
    return {"diag": op.diag.ravel(), "dims": _ints(op.dims), "axis": op.axis} | _typed(op)


def _matrix(op: Any) -> Arguments:
    return {"A": op.A, "otherdims": _ints(op.otherdims) if op.reshape else None} | _typed(op)


def _held_matrix(arguments: Arguments) -> int:
    """A sparse matrix on one axis of several is written out for all axes when it is lowered."""
    matrix, others = arguments["A"], math.prod(_ints(arguments["otherdims"] or ()))
    return 16 * matrix.nnz * others if scipy.sparse.issparse(matrix) and arguments["otherdims"] else 0


def _pad(op: Any) -> Arguments:
    return _same()(op) | {"pad": [_ints(pair) for pair in op.pad]}


def _laplacian(op: Any) -> Arguments:
    numbers = {"weights": _floats(op.weights), "sampling": _floats(op.sampling)}
    return _same("edge", "kind")(op) | numbers | {"axes": _ints(op.axes)}


def _convolve_1d(op: Any) -> Arguments:
    """Undo the padding that centres a short filter; a filter longer than the signal is kept as it is."""
    inner = op.Op
    shift, long = int(inner.offset), hasattr(inner, "padd")
    size = int(inner.dims[inner.axis] if long else inner.nh)
    start = 0 if long else max(shift, 0)
    h = np.take(inner.h, range(start, start + int(inner.nh)), axis=inner.axis)
    return {
        "dims": _ints(op.dims),
        "h": h.ravel() if h.size == h.shape[inner.axis] else h,
        "offset": size // 2 - (shift + (size % 2 == 0)) // 2,
        "axis": inner.axis,
        "method": inner.method,
        "dtype": np.dtype(inner.dtype),
    }


def _convolve_nd(op: Any) -> Arguments:
    """Take the padded filter, which has odd sides."""
    return _same("method")(op) | {"h": op.h.reshape(_ints(op.nh)), "axes": _ints(op.axes)}


def _centred(kind: type) -> Callable[..., LinearOperator]:
    """A constructor for filters whose origin is their centre: with another one, pylops pads them."""
    return lambda h, **arguments: kind(h=h, offset=[size // 2 for size in h.shape], **arguments)


_NORMS = {_FFTNorms.ORTHO: "ortho", _FFTNorms.NONE: "none", _FFTNorms.ONE_OVER_N: "1/n"}


def _fourier(op: Any) -> Arguments:
    engine = type(op).__name__.rpartition("_")[2].replace("mklfft", "mkl_fft")
    same = {"dims": _ints(op.dims), "real": op.real, "dtype": np.dtype(op.rdtype), "engine": engine}
    # How many threads to use is a matter of the machine that loads.
    options = {name: value for name, value in getattr(op, "_kwargs_fft", {}).items() if name != "workers"}
    return same | {"norm": _NORMS[op.norm]} | options


def _fft_1d(op: Any) -> Arguments:
    lowest = np.abs(op.f[op.f != 0]).min(initial=1.0)  # 1 / (nfft * sampling)
    shifts = {"ifftshift_before": op.ifftshift_before, "fftshift_after": op.fftshift_after}
    length = {"axis": int(op.axis), "nfft": int(op.nfft), "sampling": float(1 / (op.nfft * lowest))}
    return _fourier(op) | shifts | length


def _fft_nd(op: Any) -> Arguments:
    names = ("axes", "sampling", "ifftshift_before", "fftshift_after")
    return _fourier(op) | {name: getattr(op, name).tolist() for name in names} | {"nffts": _ints(op.nffts)}


def _held_frequencies(arguments: Arguments) -> int:
    """Frequencies of every transformed axis, with two temporary arrays of their size."""
    nffts = arguments["nffts"] if "nffts" in arguments else [arguments["nfft"]]
    return 24 * sum(_ints(nffts))


def _cosine(op: Any) -> Arguments:
    axes = None if op.axes is None else _ints(np.atleast_1d(op.axes))
    return _same("type")(op) | {"axes": axes}


def _bilinear(op: Any) -> Arguments:
    rows, columns = op.iava_t + op.weights_tb.real.ravel(), op.iava_l + op.weights_lr.real.ravel()
    return {"iava": np.vstack([rows, columns]), "dims": _ints(op.dims)} | _typed(op)


def _inside(arguments: Arguments) -> bool:
    """All points lie between pixels."""
    points, sizes = arguments["iava"], arguments["dims"][:2]
    if len(points) != 2 or len(sizes) != 2:
        return False
    return all(bool(((along >= 0) & (along < n - 1)).all()) for along, n in zip(points, sizes, strict=True))


def _indices_exist(arguments: Arguments) -> bool:
    index, n = arguments["iava"], arguments["dims"][arguments["axis"]]
    return index.size > 0 and bool(index.min() >= -n) and bool(index.max() < n)


def _mask_fits(arguments: Arguments) -> bool:
    """The mask has the last axes, and selects something."""
    mask, dims = arguments["mask"], _ints(arguments["dims"])
    return bool(mask.any()) and mask.ndim > 0 and mask.shape == dims[-mask.ndim :]


def _trajectory_fits(arguments: Arguments) -> bool:
    """The trajectory keeps to the band and has enough axes, and the density a weight for each point."""
    trajectory, density = arguments["trajectory"], arguments["density"]
    n_samples, ndim = trajectory.shape
    in_band = n_samples > 0 and bool((abs(trajectory) <= MAX_FREQUENCY).all())
    return (
        in_band
        and ndim in (2, 3)
        and ndim <= len(arguments["dims"])
        and (density is None or density.shape == (n_samples,))
    )


def _mri(op: Any) -> Arguments:
    names = {"kind": op._mask_type, "engine": op.engine, "fft_engine": op.fft_engine}
    return {"mask": op.mask, "sampling": op.ROp, "fourier": op.Op.args[1]} | names


def _make_mri(
    mask: Any, sampling: LinearOperator, fourier: LinearOperator, kind: str, engine: str, fft_engine: str
) -> LinearOperator:
    """Compose the parts, since the constructor would draw new lines."""
    op = medical.MRI2D.__new__(medical.MRI2D)
    LinearOperator.__init__(op, Op=sampling @ fourier)
    op._mask_type, op.engine, op.fft_engine, op.mask, op.ROp = kind, engine, fft_engine, mask, sampling
    return op


def _ct(op: Any) -> Arguments:
    detector = ("det_width", "det_count", "thetas", "origin_detector_dist")
    return _same(*detector, "source_origin_dist", "proj_geom_type", "engine")(op) | {
        "projector_type": op.projector_type.removesuffix("_fanflat")
    }


def _blur(op: Any) -> Arguments:
    return {"dims": _ints(op.dims), "sigma": float(op.parameters["sigma"]), "radius": int(op.radius)}


def _held_blur(arguments: Arguments) -> int:
    """Matrices of the blur along both axes, with two temporary arrays of their size, and the profile."""
    return 24 * sum(n**2 for n in _ints(arguments["dims"][-2:])) + 24 * int(arguments["radius"])


def _own_centre(op: Any) -> tuple[int, ...] | None:
    """None where it is the middle, which is another pixel of another point spread function."""
    return None if op.centre == tuple(n // 2 for n in op.psf.shape) else op.centre


def _held_convolution(arguments: Arguments) -> int:
    """The spectrum of an image with its border, and two temporary arrays of its size."""
    psf = arguments["psf"]
    image = _ints(arguments["dims"])[len(arguments["dims"]) - psf.ndim :]
    return 32 * math.prod(n + 2 * k for n, k in zip(image, psf.shape, strict=True))


def _held_gaussian(arguments: Arguments) -> int:
    """The kernel, and the spectrum of an image with a border of its size."""
    sigma = arguments["sigma"]
    widths = [sigma, sigma] if np.ndim(sigma) == 0 else sigma
    sides = [int(min(2 * arguments["truncate"] * float(width) + 1, kinds.MAX_VALUES)) for width in widths]
    image = _ints(arguments["dims"])[-len(sides) :]
    return 8 * math.prod(sides) + 32 * math.prod(n + 2 * k for n, k in zip(image, sides, strict=False))


def _args(*names: str) -> Callable[[Any], Arguments]:
    return lambda op: dict(zip(names, op.args, strict=True))


_DIMS = {"dims": kinds.SHAPE, "dtype": kinds.DTYPE}
_ALONG = _DIMS | {"axis": kinds.AXIS}
_AXES = kinds.several(kinds.AXIS)
_REALS = kinds.several(kinds.REAL)
_STENCIL = {"edge": kinds.BOOLEAN, "kind": kinds.choice("forward", "backward", "centered")}
_DERIVATIVE = _ALONG | _STENCIL | {"sampling": kinds.REAL}
_FILTER = _DIMS | {
    "h": kinds.array(kinds.NUMBERS),
    "axes": _AXES,
    "method": kinds.choice(None, "auto", "direct", "fft"),
}
_TRANSFORM = _DIMS | {
    "real": kinds.BOOLEAN,
    "engine": kinds.choice("numpy", "scipy", "mkl_fft"),
    "norm": kinds.choice(*_NORMS.values()),
    "overwrite_x": kinds.BOOLEAN,
}
_FOURIER_ND = _TRANSFORM | {
    "axes": _AXES,
    "nffts": kinds.SHAPE,
    "sampling": kinds.several(kinds.POSITIVE),
    "ifftshift_before": kinds.several(kinds.BOOLEAN),
    "fftshift_after": kinds.several(kinds.BOOLEAN),
}
_SCAN = {
    "angles": kinds.array("f", 1),
    "n_detectors": kinds.whole(1),
    "offset": kinds.either(kinds.REAL, kinds.array("f", 1)),
    "spacing": kinds.POSITIVE,
    "pixel_size": kinds.POSITIVE,
}
_FAN = {"source_distance": kinds.POSITIVE, "detector_distance": kinds.REAL, "curved": kinds.BOOLEAN}
_STACK = {"ops": kinds.OPERATORS}
_PAIR = {"A": kinds.OPERATOR, "B": kinds.OPERATOR}


def _leaf(
    kind: type,
    arguments: Callable[[Any], Arguments],
    accepted: dict[str, Kind],
    **rest: Any,
) -> Entry:
    return Entry((kind,), kind, arguments, accepted, **rest)


def _stack(op: Any) -> Arguments:
    """The operators of a stack; loading starts none of its processes and threads."""
    return {"ops": list(op.ops)}


ENTRIES: dict[str, Entry] = {
    "Identity": _leaf(
        pylops.Identity,
        lambda op: _sizes(op) | {"inplace": op.inplace},
        {"N": kinds.SHAPE, "M": kinds.SHAPE, "inplace": kinds.BOOLEAN, "dtype": kinds.DTYPE},
    ),
    "Zero": _leaf(pylops.Zero, _sizes, {"N": kinds.SHAPE, "M": kinds.SHAPE, "dtype": kinds.DTYPE}),
    "Diagonal": _leaf(
        pylops.Diagonal,
        _diagonal,
        _ALONG | {"diag": kinds.array(kinds.NUMBERS)},
        options=("dims", "axis"),
    ),
    "Restriction": _leaf(
        pylops.Restriction,
        _same("iava", "axis", "inplace"),
        _ALONG | {"iava": kinds.array("iu", 1), "inplace": kinds.BOOLEAN},
        fits=_indices_exist,
    ),
    "Sampling": _leaf(Sampling, _same("mask"), _DIMS | {"mask": kinds.array("b")}, fits=_mask_fits),
    "Sensitivities": _leaf(
        Sensitivities, lambda op: {"coil_maps": op.coil_maps}, {"coil_maps": kinds.array(kinds.NUMBERS)}
    ),
    "NonuniformTransform": _leaf(
        NonuniformTransform,
        _same("trajectory", "density"),
        _DIMS | {"trajectory": kinds.array("f", 2), "density": kinds.optional(kinds.array("f", 1))},
        fits=_trajectory_fits,
    ),
    "MatrixMult": _leaf(
        pylops.MatrixMult,
        _matrix,
        {"A": kinds.MATRIX, "otherdims": kinds.optional(kinds.SHAPE), "dtype": kinds.DTYPE},
        held=_held_matrix,
    ),
    "Flip": _leaf(pylops.Flip, _same("axis"), _ALONG),
    "Roll": _leaf(
        pylops.Roll,
        _same("axis", "shift"),
        _ALONG | {"shift": kinds.whole(-kinds.MAX_VALUES, kinds.MAX_VALUES)},
    ),
    "Transpose": _leaf(
        pylops.Transpose, lambda op: _same()(op) | {"axes": _ints(op.axes)}, _DIMS | {"axes": _AXES}
    ),
    "Pad": _leaf(pylops.Pad, _pad, _DIMS | {"pad": kinds.several(kinds.several(kinds.whole(0), 2))}),
    "Sum": _leaf(pylops.Sum, _same("axis"), _ALONG),
    "Real": _leaf(pylops.Real, _same(), _DIMS),
    "Imag": _leaf(pylops.Imag, _same(), _DIMS),
    "Conj": _leaf(pylops.Conj, _same(), _DIMS),
    "FirstDerivative": _leaf(
        pylops.FirstDerivative,
        _same("axis", "sampling", "kind", "edge", "order"),
        _DERIVATIVE | {"order": kinds.choice(3, 5)},
    ),
    "SecondDerivative": _leaf(
        pylops.SecondDerivative, _same("axis", "sampling", "kind", "edge"), _DERIVATIVE
    ),
    "Gradient": _leaf(
        pylops.Gradient,
        lambda op: _same("edge", "kind")(op) | {"sampling": _floats(op.sampling)},
        _DIMS | _STENCIL | {"sampling": _REALS},
    ),
    "Laplacian": _leaf(
        pylops.Laplacian,
        _laplacian,
        _DIMS | _STENCIL | {"axes": _AXES, "weights": _REALS, "sampling": _REALS},
    ),
    "Convolve1D": _leaf(
        signalprocessing.Convolve1D,
        _convolve_1d,
        _ALONG
        | {
            "h": kinds.array(kinds.NUMBERS),
            "offset": kinds.whole(0),
            "method": kinds.choice(None, "direct", "fft", "overlapadd"),
        },
    ),
    "Convolve2D": Entry(
        (signalprocessing.Convolve2D,), _centred(signalprocessing.Convolve2D), _convolve_nd, _FILTER
    ),
    "ConvolveND": Entry(
        (signalprocessing.ConvolveND,), _centred(signalprocessing.ConvolveND), _convolve_nd, _FILTER
    ),
    "Convolution": _leaf(
        Convolution,
        lambda op: {"psf": op.psf, "dims": op._image, "boundary": op.boundary, "centre": _own_centre(op)},
        {
            "psf": kinds.array(kinds.NUMBERS),
            "dims": kinds.SHAPE,
            "boundary": kinds.choice(*BOUNDARIES),
            "centre": kinds.optional(kinds.several(kinds.whole(0))),
        },
        held=_held_convolution,
        fits=lambda arguments: arguments["psf"].ndim <= len(arguments["dims"]),
    ),
    "GaussianConvolution": Entry(
        (GaussianConvolution,),
        gaussian_blur,
        lambda op: {"dims": op._image, "sigma": op.sigma, "truncate": op.truncate, "boundary": op.boundary},
        {
            "dims": kinds.SHAPE,
            "sigma": kinds.either(kinds.POSITIVE, kinds.several(kinds.POSITIVE)),
            "truncate": kinds.POSITIVE,
            "boundary": kinds.choice(*BOUNDARIES),
        },
        held=_held_gaussian,
    ),
    "Bilinear": _leaf(
        signalprocessing.Bilinear, _bilinear, _DIMS | {"iava": kinds.array("f", 2)}, fits=_inside
    ),
    "DCT": _leaf(
        signalprocessing.DCT,
        _cosine,
        _DIMS | {"type": kinds.choice(1, 2, 3, 4), "axes": kinds.optional(_AXES)},
    ),
    "FFT": Entry(
        (fft._FFT_numpy, fft._FFT_scipy, fft._FFT_mklfft),
        signalprocessing.FFT,
        _fft_1d,
        _TRANSFORM
        | {
            "axis": kinds.AXIS,
            "nfft": kinds.whole(1),
            "sampling": kinds.POSITIVE,
            "ifftshift_before": kinds.BOOLEAN,
            "fftshift_after": kinds.BOOLEAN,
        },
        options=("overwrite_x",),
        held=_held_frequencies,
    ),
    "FFT2D": Entry(
        (fft2d._FFT2D_numpy, fft2d._FFT2D_scipy, fft2d._FFT2D_mklfft),
        signalprocessing.FFT2D,
        _fft_nd,
        _FOURIER_ND,
        options=("overwrite_x",),
        held=_held_frequencies,
    ),
    "FFTND": Entry(
        (fftnd._FFTND_numpy, fftnd._FFTND_scipy, fftnd._FFTND_mklfft),
        signalprocessing.FFTND,
        _fft_nd,
        _FOURIER_ND,
        options=("overwrite_x",),
        held=_held_frequencies,
    ),
    "MRI2D": Entry(
        (medical.MRI2D,),
        _make_mri,
        _mri,
        {
            "mask": kinds.array(kinds.NUMBERS),
            "sampling": kinds.OPERATOR,
            "fourier": kinds.OPERATOR,
            "kind": kinds.choice("mask", "vertical-reg", "vertical-uni", "radial-reg", "radial-uni"),
            "engine": kinds.choice("numpy", "cupy", "jax"),
            "fft_engine": kinds.choice("numpy", "scipy", "mkl_fft"),
        },
    ),
    "CT2D": _leaf(
        medical.CT2D,
        _ct,
        _DIMS
        | {
            "det_width": kinds.POSITIVE,
            "det_count": kinds.whole(1),
            "thetas": kinds.array("iuf", 1),
            "origin_detector_dist": kinds.optional(kinds.REAL),
            "source_origin_dist": kinds.optional(kinds.REAL),
            "proj_geom_type": kinds.choice("parallel", "fanflat"),
            "engine": kinds.choice("cpu", "cuda"),
            "projector_type": kinds.choice("line", "strip", "linear", "cuda"),
        },
    ),
    "ParallelBeam": Entry((ParallelBeam,), parallel_beam, _same(*_SCAN), _DIMS | _SCAN),
    "FanBeam": Entry((FanBeam,), fan_beam, _same(*_SCAN, *_FAN), _DIMS | _SCAN | _FAN),
    "AstraProjector": Entry(
        (AstraProjector,),
        from_astra,
        lambda op: {name: getattr(op, name) for name in ("proj_geom", "vol_geom", "projector")},
        {"proj_geom": kinds.SETTINGS, "vol_geom": kinds.SETTINGS, "projector": kinds.TEXT},
    ),
    "MbirtorchProjector": _leaf(
        MbirtorchProjector,
        lambda op: {name: getattr(op, name) for name in ("geometry", "options", "compile_mode")},
        {"geometry": kinds.SETTINGS, "options": kinds.SETTINGS, "compile_mode": kinds.choice("auto", "off")},
    ),
    "GaussianBlur": _leaf(
        GaussianBlur,
        _blur,
        {"dims": kinds.SHAPE, "sigma": kinds.POSITIVE, "radius": kinds.whole(0)},
        held=_held_blur,
    ),
    "AngleOffset": _leaf(
        AngleOffset,
        lambda op: {"operator": op.operator, "angle": float(op.parameters["angle"])},
        {"operator": kinds.OPERATOR, "angle": kinds.REAL},
    ),
    "DetectorOffset": _leaf(
        DetectorOffset,
        lambda op: {"operator": op.operator, "shift": float(op.parameters["shift"])},
        {"operator": kinds.OPERATOR, "shift": kinds.REAL},
    ),
    "VStack": _leaf(pylops.VStack, _stack, _STACK),
    "HStack": _leaf(pylops.HStack, _stack, _STACK),
    "BlockDiag": _leaf(pylops.BlockDiag, _stack, _STACK),
    "Kronecker": _leaf(
        pylops.Kronecker,
        lambda op: {"Op1": op.Op1, "Op2": op.Op2} | _typed(op),
        {"Op1": kinds.OPERATOR, "Op2": kinds.OPERATOR, "dtype": kinds.DTYPE},
    ),
    "product": _leaf(linearoperator._ProductLinearOperator, _args("A", "B"), _PAIR),
    "sum": _leaf(linearoperator._SumLinearOperator, _args("A", "B"), _PAIR),
    "scaled": _leaf(
        linearoperator._ScaledLinearOperator,
        _args("A", "alpha"),
        {"A": kinds.OPERATOR, "alpha": kinds.NUMBER},
    ),
    "power": _leaf(
        linearoperator._PowerLinearOperator,
        _args("A", "p"),
        {"A": kinds.OPERATOR, "p": kinds.whole(0, MAX_PARTS)},
    ),
    "adjoint": _leaf(linearoperator._AdjointLinearOperator, lambda op: {"A": op.A}, {"A": kinds.OPERATOR}),
    "transposed": _leaf(
        linearoperator._TransposedLinearOperator, lambda op: {"A": op.A}, {"A": kinds.OPERATOR}
    ),
    "conjugate": _leaf(linearoperator._ConjLinearOperator, lambda op: {"Op": op.Op}, {"Op": kinds.OPERATOR}),
    "real or imaginary part": _leaf(
        linearoperator._RealImagLinearOperator,
        lambda op: {"Op": op.Op, "forw": op.forw, "adj": op.adj, "real": op.real},
        {
            "Op": kinds.OPERATOR,
            "forw": kinds.BOOLEAN,
            "adj": kinds.BOOLEAN,
            "real": kinds.BOOLEAN,
        },
    ),
}
NAMES = {kind: name for name, entry in ENTRIES.items() for kind in entry.types}
