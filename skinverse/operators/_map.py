"""The torch face of a linear operator: batched, differentiable any number of times, on any device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from skinverse._batch import norm

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class _Apply(torch.autograd.Function):
    """``A x``, whose derivative is ``A^H g``: the same function with the roles swapped."""

    @staticmethod
    def forward(x: Tensor, linear: LinearMap, adjoint: bool) -> Tensor:
        return linear._adjoint(x) if adjoint else linear._forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.linear, ctx.adjoint = inputs
        ctx.real = not x.is_complex()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        back = _Apply.apply(g, ctx.linear, not ctx.adjoint)
        return (back.real if ctx.real and back.is_complex() else back), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return _Apply.apply(dx, ctx.linear, ctx.adjoint)


class LinearMap(ABC):
    """A linear map between batches, ``(n, *dims) -> (n, *dimsd)``.

    A subclass gives :meth:`_forward` and :meth:`_adjoint`: plain torch code, never asked for a
    gradient. Constants live in ``_constants`` and are handed out by :meth:`_constant` on the device
    and in the precision of the batch at hand, so float32 stays float32 and float64 stays float64.

    Parameters
    ----------
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    """

    def __init__(self, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        self.dims = tuple(int(d) for d in dims)
        self.dimsd = tuple(int(d) for d in dimsd)
        self._constants: dict[str, Tensor] = {}
        self._parts: tuple[LinearMap, ...] = ()
        self._cast: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._norm: float | None = None

    # A passive map selects or weighs: an analytic inverse of what it is composed with takes its adjoint.
    passive = False
    # The identity, for which some functionals know more.
    identity = False
    # Whether it has parameters of which derivatives are wanted.
    requires_grad = False

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the map to a batch of images, (n, *dims) -> (n, *dimsd)."""
        check_shape(x, self.dims, "images", "dims")
        return _Apply.apply(x, self, False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint to a batch of data, (n, *dimsd) -> (n, *dims)."""
        check_shape(y, self.dimsd, "data", "dimsd")
        return _Apply.apply(y, self, True)

    def filtered_adjoint(self, y: Tensor, filter: str = "ramp") -> Tensor:
        """Analytic inverse where there is one.

        Filtered back-projection for parallel-beam CT, the zero-filled inverse for sampled Fourier and
        cosine transforms, the adjoint for the identity.

        Parameters
        ----------
        y : Tensor of shape (n, *dimsd)
            Data.
        filter : {"ramp", "shepp-logan", "cosine", "hamming", "hann"}, default="ramp"
            Window on the ramp filter of a filtered back-projection.

        Returns
        -------
        Tensor of shape (n, *dims)
            Images.

        Raises
        ------
        TypeError
            If there is none.
        """
        raise TypeError(
            f"filtered back-projection needs a parallel_beam, Fourier, cosine or identity operator, got "
            f"{type(self).__name__}: use Tikhonov, which takes any operator"
        )

    def block(self, start: int, stop: int) -> LinearMap:
        """The map to a part of the data, consecutive along their first axis.

        Explicit matrices and projections keep only their rows; other maps do all their work.

        Parameters
        ----------
        start, stop : int
            Range of the first data axis.

        Returns
        -------
        LinearMap
            To data of shape ``(stop - start, *dimsd[1:])``.
        """
        return _Block(self, start, stop)

    def to(self, device: torch.device | str) -> Self:
        """Keep the constants on this device, so that they need not travel there."""
        self._constants = {name: value.to(device) for name, value in self._constants.items()}
        self._cast = {}
        for part in self._parts:
            part.to(device)
        return self

    def __matmul__(self, other: LinearMap) -> LinearMap:
        """``(A @ B)(x) = A(B(x))``."""
        return Composition((self, other))

    def norm(self) -> float:
        """Spectral norm, by power iteration on ``A^H A``; computed once, to about 1e-3."""
        if self._norm is None:
            with torch.no_grad():
                self._norm = float(norm(self(leading(self))))
        return self._norm

    def precision(self) -> torch.dtype:
        """float32 where a constant is stored so: checks in it need no second copy. Else float64."""
        kept = [
            c.dtype.to_real() for c in self._constants.values() if c.is_floating_point() or c.is_complex()
        ]
        single = torch.float32 in [*kept, *(part.precision() for part in self._parts)]
        return torch.float32 if single else torch.float64

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """The constant on the device and in the precision of ``like``; indices and masks keep their type."""
        stored = self._constants[name]
        real = like.dtype.to_real()
        dtype = (
            _COMPLEX[real] if stored.is_complex() else real if stored.is_floating_point() else stored.dtype
        )
        key = (name, like.device, dtype)
        if key not in self._cast:
            self._cast[key] = stored.to(like.device, dtype)
        return self._cast[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cast": {}}


def leading(
    linear: LinearMap, start: Tensor | None = None, *, max_steps: int = 300, tol: float = 1e-5
) -> Tensor:
    """The image of norm 1 that is enlarged most, (1, *dims), by power iteration on ``A^H A``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, *linear.dims), generator=generator, dtype=linear.precision())
    x, value = x if start is None else start, torch.zeros(1, dtype=x.dtype)
    for _ in range(max_steps):
        x = x / norm(x).clamp_min(torch.finfo(x.dtype).tiny).item()
        image = linear.adjoint(linear(x))
        previous, value = value, norm(image)
        if abs(value - previous) <= tol * value:
            break
        x = image
    return x / norm(x).clamp_min(torch.finfo(x.dtype).tiny).item()


def check_shape(batch: Tensor, dims: tuple[int, ...], what: str, source: str) -> None:
    if tuple(batch.shape[1:]) != dims:
        expected = ", ".join(["n", *map(str, dims)])
        raise ValueError(f"expected {what} of shape ({expected}) from {source}, got {tuple(batch.shape)}")


class _Block(LinearMap):
    """Rows of another map."""

    def __init__(self, whole: LinearMap, start: int, stop: int) -> None:
        super().__init__(whole.dims, (stop - start, *whole.dimsd[1:]))
        self._parts, self._rows = (whole,), slice(start, stop)

    def _forward(self, x: Tensor) -> Tensor:
        return self._parts[0]._forward(x)[:, self._rows]

    def _adjoint(self, y: Tensor) -> Tensor:
        padded = y.new_zeros((len(y), *self._parts[0].dimsd))
        padded[:, self._rows] = y
        return self._parts[0]._adjoint(padded)


class Composition(LinearMap):
    """``A_1 A_2 ... A_k x``; where shapes differ, only by their cutting into axes, data are reshaped."""

    def __init__(self, parts: tuple[LinearMap, ...]) -> None:
        super().__init__(parts[-1].dims, parts[0].dimsd)
        self._parts = parts

    def _forward(self, x: Tensor) -> Tensor:
        for part in reversed(self._parts):
            x = part._forward(x.reshape(len(x), *part.dims))
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        for part in self._parts:
            y = part._adjoint(y.reshape(len(y), *part.dimsd))
        return y

    def filtered_adjoint(self, y: Tensor, filter: str = "ramp") -> Tensor:
        if all(part.passive for part in self._parts):
            return super().filtered_adjoint(y, filter)
        for part in self._parts:
            y = y.reshape(len(y), *part.dimsd)
            y = part.adjoint(y) if part.passive else part.filtered_adjoint(y, filter)
        return y

    def block(self, start: int, stop: int) -> LinearMap:
        return Composition((self._parts[0].block(start, stop), *self._parts[1:]))
