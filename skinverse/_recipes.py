"""How to rebuild a pylops operator: the name of its constructor and the arguments, never its code.

pylops keeps most constructor arguments as attributes of the same name; the entries below say where the
others are found. Types are matched exactly: a user's subclass may behave differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pylops
from pylops import LinearOperator, linearoperator, medical, signalprocessing
from pylops.signalprocessing import fft, fft2d, fftnd
from pylops.signalprocessing._baseffts import _FFTNorms

from skinverse import operators

__all__ = ["build", "recipe"]

Arguments = dict[str, Any]


class _Entry(NamedTuple):
    types: tuple[type, ...]
    make: Callable[..., LinearOperator]
    arguments: Callable[[Any], Arguments]


def recipe(operator: LinearOperator) -> tuple[str, Arguments, Arguments]:
    """Describe an operator by the name of an entry, its arguments, and what every operator has.

    Arguments may again be operators or arrays.

    Raises
    ------
    ValueError
        If there is no entry for the operator's type.
    """
    name = _NAMES.get(type(operator))
    if name is None:
        raise ValueError(
            f"the operator {type(operator).__name__} has no recipe and cannot be stored: "
            "save after set_params(operator=None), load, and set_params(operator=...) again"
        )
    return name, _ENTRIES[name].arguments(operator), _common(operator)


def build(name: str, arguments: Arguments, common: Arguments) -> LinearOperator:
    """Rebuild an operator from what :func:`recipe` gave.

    Raises
    ------
    ValueError
        If there is no such entry.
    """
    if name not in _ENTRIES:
        raise ValueError(f"there is no recipe for an operator {name!r}")
    with warnings.catch_warnings():  # its first owner has seen them
        warnings.simplefilter("ignore")
        operator = _ENTRIES[name].make(**arguments)
    operator.shape = operator.shape  # pylops refuses other sizes once the shape is fixed
    for attribute in _COMMON:
        setattr(operator, attribute, common[attribute])
    return operator


_COMMON = ("dtype", "dims", "dimsd", "clinear", "explicit", "forceflat", "name")


def _common(operator: LinearOperator) -> Arguments:
    """Describe what compositions inherit, users may change, and constructors do not all take."""
    values = {name: getattr(operator, name) for name in _COMMON}
    sizes = {name: _ints(values[name]) for name in ("dims", "dimsd")}
    return values | sizes | {"dtype": np.dtype(operator.dtype)}


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _same(*names: str) -> Callable[[Any], Arguments]:
    """Arguments that are attributes of the same name."""
    always = ("dtype", *names)
    return lambda op: {"dims": _ints(op.dims)} | {name: getattr(op, name) for name in always}


def _sizes(op: Any) -> Arguments:
    return {"N": _ints(op.dimsd), "M": _ints(op.dims), "dtype": op.dtype}


def _diagonal(op: Any) -> Arguments:
    if op.diag.shape == tuple(op.dims):
        return {"diag": op.diag, "dtype": op.dtype}
    return {"diag": op.diag.ravel(), "dims": _ints(op.dims), "axis": op.axis, "dtype": op.dtype}


def _matrix(op: Any) -> Arguments:
    otherdims = _ints(op.otherdims) if op.reshape else None
    return {"A": op.A, "otherdims": otherdims, "dtype": op.dtype}


def _pad(op: Any) -> Arguments:
    return _same()(op) | {"pad": [_ints(pair) for pair in op.pad]}


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
        "dtype": inner.dtype,
    }


def _convolve_nd(op: Any) -> Arguments:
    """Take the padded filter: it has odd sides and its offset in the centre."""
    sides = _ints(op.nh)
    arguments = {"h": op.h.reshape(sides), "offset": [n // 2 for n in sides], "axes": _ints(op.axes)}
    return _same("method")(op) | arguments


_NORMS = {_FFTNorms.ORTHO: "ortho", _FFTNorms.NONE: "none", _FFTNorms.ONE_OVER_N: "1/n"}


def _fourier(op: Any) -> Arguments:
    engine = type(op).__name__.rpartition("_")[2].replace("mklfft", "mkl_fft")
    same = {"dims": _ints(op.dims), "real": op.real, "dtype": op.rdtype, "engine": engine}
    return same | {"norm": _NORMS[op.norm]} | getattr(op, "_kwargs_fft", {})


def _fft_1d(op: Any) -> Arguments:
    lowest = np.abs(op.f[op.f != 0]).min(initial=1.0)  # 1 / (nfft * sampling)
    shifts = {"ifftshift_before": op.ifftshift_before, "fftshift_after": op.fftshift_after}
    length = {"axis": int(op.axis), "nfft": int(op.nfft), "sampling": float(1 / (op.nfft * lowest))}
    return _fourier(op) | shifts | length


def _fft_nd(op: Any) -> Arguments:
    names = ("axes", "sampling", "ifftshift_before", "fftshift_after")
    return _fourier(op) | {name: getattr(op, name).tolist() for name in names} | {"nffts": _ints(op.nffts)}


def _bilinear(op: Any) -> Arguments:
    rows, columns = op.iava_t + op.weights_tb.real.ravel(), op.iava_l + op.weights_lr.real.ravel()
    return {"iava": np.vstack([rows, columns]), "dims": _ints(op.dims), "dtype": op.dtype}


def _mri(op: Any) -> Arguments:
    names = {"kind": op._mask_type, "engine": op.engine, "fft_engine": op.fft_engine}
    return {"mask": op.mask, "sampling": op.ROp, "fourier": op.Op.args[1]} | names


def _make_mri(
    mask: Any, sampling: LinearOperator, fourier: LinearOperator, kind: str, engine: str, fft_engine: str
) -> LinearOperator:
    """Put the parts together: the constructor would draw new lines."""
    op = medical.MRI2D.__new__(medical.MRI2D)
    LinearOperator.__init__(op, Op=sampling @ fourier)
    op._mask_type, op.engine, op.fft_engine, op.mask, op.ROp = kind, engine, fft_engine, mask, sampling
    return op


def _ct(op: Any) -> Arguments:
    detector = ("det_width", "det_count", "thetas", "origin_detector_dist")
    return _same(*detector, "source_origin_dist", "proj_geom_type", "engine")(op) | {
        "projector_type": op.projector_type.removesuffix("_fanflat")
    }


def _stack(op: Any) -> Arguments:
    """Operators next to each other; processes and threads are not started on loading."""
    return {"ops": list(op.ops)}


def _args(*names: str) -> Callable[[Any], Arguments]:
    return lambda op: dict(zip(names, op.args, strict=True))


def _inner(name: str) -> Callable[[Any], Arguments]:
    return lambda op: {"A": op.A} if name == "A" else {"Op": op.Op}


_DERIVATIVE = ("axis", "sampling", "kind", "edge")


def _entry(kind: type, arguments: Callable[[Any], Arguments]) -> _Entry:
    return _Entry((kind,), kind, arguments)


_ENTRIES: dict[str, _Entry] = {
    "Identity": _entry(pylops.Identity, lambda op: _sizes(op) | {"inplace": op.inplace}),
    "Zero": _entry(pylops.Zero, _sizes),
    "Diagonal": _entry(pylops.Diagonal, _diagonal),
    "Restriction": _entry(pylops.Restriction, _same("iava", "axis", "inplace")),
    "MatrixMult": _entry(pylops.MatrixMult, _matrix),
    "Flip": _entry(pylops.Flip, _same("axis")),
    "Roll": _entry(pylops.Roll, _same("axis", "shift")),
    "Transpose": _entry(pylops.Transpose, lambda op: _same()(op) | {"axes": _ints(op.axes)}),
    "Pad": _entry(pylops.Pad, _pad),
    "Sum": _entry(pylops.Sum, _same("axis")),
    "Real": _entry(pylops.Real, _same()),
    "Imag": _entry(pylops.Imag, _same()),
    "Conj": _entry(pylops.Conj, _same()),
    "FirstDerivative": _entry(pylops.FirstDerivative, _same(*_DERIVATIVE, "order")),
    "SecondDerivative": _entry(pylops.SecondDerivative, _same(*_DERIVATIVE)),
    "Gradient": _entry(pylops.Gradient, _same("sampling", "edge", "kind")),
    "Laplacian": _entry(pylops.Laplacian, _same("axes", "weights", "sampling", "edge", "kind")),
    "Convolve1D": _entry(signalprocessing.Convolve1D, _convolve_1d),
    "Convolve2D": _entry(signalprocessing.Convolve2D, _convolve_nd),
    "ConvolveND": _entry(signalprocessing.ConvolveND, _convolve_nd),
    "Bilinear": _entry(signalprocessing.Bilinear, _bilinear),
    "DCT": _entry(signalprocessing.DCT, _same("type", "axes", "workers")),
    "FFT": _Entry((fft._FFT_numpy, fft._FFT_scipy, fft._FFT_mklfft), signalprocessing.FFT, _fft_1d),
    "FFT2D": _Entry(
        (fft2d._FFT2D_numpy, fft2d._FFT2D_scipy, fft2d._FFT2D_mklfft), signalprocessing.FFT2D, _fft_nd
    ),
    "FFTND": _Entry(
        (fftnd._FFTND_numpy, fftnd._FFTND_scipy, fftnd._FFTND_mklfft), signalprocessing.FFTND, _fft_nd
    ),
    "MRI2D": _Entry((medical.MRI2D,), _make_mri, _mri),
    "CT2D": _entry(medical.CT2D, _ct),
    "ParallelBeam": _entry(
        operators.ParallelBeam, _same("angles", "n_detectors", "pixel_size", "detector_spacing")
    ),
    "GaussianBlur": _entry(
        operators.GaussianBlur,
        lambda op: {
            "dims": _ints(op.dims),
            "sigma": float(op.parameters["sigma"]),
            "radius": int(op.radius),
        },
    ),
    "Turned": _entry(
        operators.Turned, lambda op: {"operator": op.operator, "angle": float(op.parameters["angle"])}
    ),
    "Shifted": _entry(
        operators.Shifted, lambda op: {"operator": op.operator, "shift": float(op.parameters["shift"])}
    ),
    "VStack": _entry(pylops.VStack, _stack),
    "HStack": _entry(pylops.HStack, _stack),
    "BlockDiag": _entry(pylops.BlockDiag, _stack),
    "Kronecker": _entry(pylops.Kronecker, lambda op: {"Op1": op.Op1, "Op2": op.Op2, "dtype": op.dtype}),
    "product": _entry(linearoperator._ProductLinearOperator, _args("A", "B")),
    "sum": _entry(linearoperator._SumLinearOperator, _args("A", "B")),
    "scaled": _entry(linearoperator._ScaledLinearOperator, _args("A", "alpha")),
    "power": _entry(linearoperator._PowerLinearOperator, _args("A", "p")),
    "adjoint": _entry(linearoperator._AdjointLinearOperator, _inner("A")),
    "transposed": _entry(linearoperator._TransposedLinearOperator, _inner("A")),
    "conjugate": _entry(linearoperator._ConjLinearOperator, _inner("Op")),
    "real or imaginary part": _entry(
        linearoperator._RealImagLinearOperator,
        lambda op: {"Op": op.Op, "forw": op.forw, "adj": op.adj, "real": op.real},
    ),
}
_NAMES = {kind: name for name, entry in _ENTRIES.items() for kind in entry.types}
