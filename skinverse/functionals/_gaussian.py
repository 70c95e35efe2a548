"""A Gaussian of images whose precision has a sparse Cholesky factor."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Below, planes are (..., n, H, W) and factors (n, 1 + m, H, W): planes that differ in the leading
# axes share a factor. Entry o of a factor belongs to offset o, entry 0 is the diagonal.
Offsets = tuple[tuple[int, int], ...]


class SparseCholeskyGaussian:
    """Gaussian images with precision ``Sigma^-1 = L L^T``, where ``L`` couples neighbouring pixels only.

    With pixels in raster order, ``(L^T r)_p = d_p r_p + sum_o w_{o,p} r_{p+o}``, where ``o`` runs over the
    offsets to those pixels of a ``k x k`` window that follow its centre; pixels outside of the image are left
    out. ``L`` is lower triangular, so ``log det Sigma = -2 sum log d``. Channels are independent.

    Parameters
    ----------
    mean : Tensor of shape (n, channels, height, width)
        Means of the Gaussians.
    log_diag : Tensor of shape (n, channels, height, width)
        Logarithm of the diagonal ``d``.
    off : Tensor of shape (n, channels, m, height, width)
        Off-diagonals ``w``, ``m = (k^2 - 1) / 2`` for an odd ``k``, in raster order: first those in the
        pixel's own row, then those in the rows below from left to right. With ``m = 0`` the covariance is
        diagonal.

    Raises
    ------
    ValueError
        If the shapes do not fit together or no window has ``m`` such offsets.

    Notes
    -----
    Products and solves can be differentiated any number of times, also with respect to all three parameters.
    A solve goes through the rows of pixels one by one, for all images and samples at once.

    References
    ----------
    G. Dorta, S. Vicente, L. Agapito, N. D. F. Campbell and I. Simpson, Structured uncertainty prediction
    networks, CVPR, 2018.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import SparseCholeskyGaussian
    >>> zero = torch.zeros(1, 1, 4, 4)
    >>> gaussian = SparseCholeskyGaussian(zero, zero, torch.full((1, 1, 4, 4, 4), -0.2))
    >>> gaussian.covariance_row((1, 1))[0, 0, 1].round(decimals=2)
    tensor([0.4400, 1.3500, 0.4500, 0.1600])
    """

    def __init__(self, mean: Tensor, log_diag: Tensor, off: Tensor) -> None:
        if mean.ndim != 4 or log_diag.shape != mean.shape or off.ndim != 5:
            raise ValueError(
                "expected mean and log_diag of shape (n, channels, height, width) and off of shape "
                f"(n, channels, m, height, width), got {tuple(mean.shape)}, {tuple(log_diag.shape)} and "
                f"{tuple(off.shape)}"
            )
        if (*off.shape[:2], *off.shape[3:]) != mean.shape:
            raise ValueError(f"off: expected the sizes of mean {tuple(mean.shape)}, got {tuple(off.shape)}")
        self.mean, self.log_diag, self.off = mean, log_diag, off
        self.offsets = causal_offsets(math.isqrt(2 * off.shape[2] + 1))
        if len(self.offsets) != 1 + off.shape[2]:
            raise ValueError(f"off: expected (k^2 - 1) / 2 offsets for an odd k, got {off.shape[2]}")
        self._factor = torch.cat([log_diag.exp()[:, :, None], off], 2).flatten(0, 1)

    def select(self, index: Tensor) -> SparseCholeskyGaussian:
        """The Gaussians of some images."""
        return SparseCholeskyGaussian(self.mean[index], self.log_diag[index], self.off[index])

    def whiten(self, x: Tensor) -> Tensor:
        """``L^T (x - mean)``: white noise if the Gaussian describes the images.

        Parameters
        ----------
        x : Tensor of shape (..., n, channels, height, width)
            Images.

        Returns
        -------
        Tensor
            Whitened images, of the same shape.
        """
        return self._apply(_Forward, x - self.mean)

    def color(self, noise: Tensor) -> Tensor:
        """``mean + L^-T noise``: the inverse of :meth:`whiten`.

        Parameters
        ----------
        noise : Tensor of shape (..., n, channels, height, width)
            White noise.

        Returns
        -------
        Tensor
            Images, of the same shape.
        """
        return self.mean + self._apply(_Solve, noise)

    def precision_mul(self, x: Tensor) -> Tensor:
        """``Sigma^-1 x``, for x of shape (..., n, channels, height, width)."""
        return self._apply(_Adjoint, self._apply(_Forward, x))

    def covariance_mul(self, x: Tensor) -> Tensor:
        """``Sigma x``, for x of shape (..., n, channels, height, width)."""
        return self._apply(_Solve, self._apply(_SolveAdjoint, x))

    def precision_diagonal(self) -> Tensor:
        """The diagonal of ``Sigma^-1``, of the shape of ``mean``."""
        ones = torch.ones_like(self.mean).flatten(0, 1)
        return _Adjoint.apply(self._factor.square(), ones, self.offsets).view_as(self.mean)

    def log_det(self) -> Tensor:
        """``log det Sigma`` of each image, (n,)."""
        return -2 * self.log_diag.flatten(1).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the density.

        Parameters
        ----------
        x : Tensor of shape (..., n, channels, height, width)
            Images.

        Returns
        -------
        Tensor of shape (..., n)
            Logarithms of the density, in nats.
        """
        squares = self.whiten(x).square().flatten(-3).sum(-1)
        return -0.5 * (squares + self.log_det() + self.mean[0].numel() * math.log(2 * math.pi))

    def sample(self, n_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw images.

        Parameters
        ----------
        n_samples : int, default=1
            Number of images of each Gaussian.
        generator : torch.Generator or None, default=None
            Generator on the device of the mean; None draws other images in each call, and not from torch's
            global generator.

        Returns
        -------
        Tensor of shape (n_samples, n, channels, height, width)
            Images.
        """
        shape, like = (n_samples, *self.mean.shape), self.mean
        if generator is None:
            generator = torch.Generator(like.device)
            generator.seed()
        return self.color(torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device))

    def covariance_row(self, pixel: tuple[int, ...]) -> Tensor:
        """Covariance of one pixel with all others.

        Parameters
        ----------
        pixel : tuple of int
            Position of the pixel: (row, column) in the first channel, or (channel, row, column).

        Returns
        -------
        Tensor of shape (n, channels, height, width)
            Covariances, zero in the other channels.

        Raises
        ------
        IndexError
            If there is no such pixel.
        """
        unit = torch.zeros_like(self.mean)
        channel, row, column = pixel if len(pixel) == 3 else (0, *pixel)
        unit[:, channel, row, column] = 1
        return self.covariance_mul(unit)

    def _apply(self, function: Any, x: Tensor) -> Tensor:
        planes = x.expand(torch.broadcast_shapes(x.shape, self.mean.shape)).flatten(-4, -3)
        return function.apply(self._factor, planes, self.offsets).unflatten(-3, self.mean.shape[:2])


def causal_offsets(window: int) -> Offsets:
    """Offsets (rows, columns) to the pixels of a window that follow its centre, which comes first."""
    half = window // 2
    own = tuple((0, j) for j in range(half + 1))
    return own + tuple((i, j) for i in range(1, half + 1) for j in range(-half, half + 1))


def _shifted(x: Tensor, offsets: Offsets) -> list[Tensor]:
    """``x_{p+o}`` for each offset: windows of one padded copy."""
    half, (height, width) = offsets[-1][1], x.shape[-2:]
    padded = F.pad(x, (half, half, 0, half))
    return [padded[..., i : i + height, half + j : half + j + width] for i, j in offsets]


def _forward(factor: Tensor, x: Tensor, offsets: Offsets) -> Tensor:
    """``L^T x``."""
    total = torch.zeros(x.shape, dtype=factor.dtype, device=x.device)
    for weight, shifted in zip(factor.unbind(1), _shifted(x, offsets), strict=True):
        total.addcmul_(weight, shifted)
    return total


def _adjoint(factor: Tensor, x: Tensor, offsets: Offsets) -> Tensor:
    """``L x``."""
    total = torch.zeros_like(x)
    half, (height, width) = offsets[-1][1], x.shape[-2:]
    padded = F.pad(total, (half, half, 0, half))
    for weight, (i, j) in zip(factor.unbind(1), offsets, strict=True):
        padded[..., i : i + height, half + j : half + j + width].addcmul_(weight, x)
    return padded[..., :height, half : half + width].contiguous()


def _outer(y: Tensor, x: Tensor, offsets: Offsets) -> Tensor:
    """``y_p x_{p+o}``: the derivative of ``<y, L^T x>`` by the factor."""
    found = y.new_empty(*y.shape[-3:-2], len(offsets), *y.shape[-2:])
    for place, shifted in zip(found.unbind(1), _shifted(x, offsets), strict=True):
        if y.ndim == 3:
            torch.mul(y, shifted, out=place)
        else:
            place.copy_((y * shifted).flatten(0, -4).sum(0))
    return found


def _solve(factor: Tensor, b: Tensor, offsets: Offsets) -> Tensor:
    """``L^-T b``, from the last row of pixels to the first, each a banded triangular system."""
    half, (n, height, width) = offsets[-1][1], b.shape[-3:]
    rows = b.reshape(-1, n, height, width).permute(2, 1, 3, 0)  # row by row, samples last
    x = b.new_zeros(height + half, n, width + 2 * half, rows.shape[-1])
    matrix = b.new_zeros(n, width, width)
    for r in reversed(range(height)):
        weights = factor[:, :, r, :, None]
        rest = rows[r].clone()
        for o, (i, j) in enumerate(offsets):
            if i > 0:
                rest.addcmul_(weights[:, o], x[r + i, :, half + j : half + j + width], value=-1)
            elif j < width:
                matrix.diagonal(j, 1, 2).copy_(factor[:, o, r, : width - j])
        x[r, :, half : half + width] = torch.linalg.solve_triangular(matrix, rest, upper=True)
    return x[:height, :, half : half + width].permute(3, 1, 0, 2).reshape(b.shape)


def _solve_adjoint(factor: Tensor, b: Tensor, offsets: Offsets) -> Tensor:
    """``L^-1 b``: turned by half a turn, ``L`` is the transpose of another factor."""
    height, width = b.shape[-2:]
    turned = torch.zeros_like(factor)
    for o, (i, j) in enumerate(offsets):  # the weight with which p - o enters p
        to, of = (slice(i, None), slice(max(j, 0), width + min(j, 0))), (slice(None, height - i),)
        if i < height and abs(j) < width:
            turned[:, o][:, *to] = factor[:, o][:, *of, max(-j, 0) : width - max(j, 0)]
    return _solve(turned.flip(-2, -1), b.flip(-2, -1), offsets).flip(-2, -1)


# The five functions below are each other's derivatives: that is why every order exists.
class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: Tensor, x: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(factor, x)
        ctx.offsets = offsets
        return _forward(factor, x, offsets)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (factor, x), offsets, (by_factor, by_x, _) = ctx.saved_tensors, ctx.offsets, ctx.needs_input_grad
        return (
            _Outer.apply(g, x, offsets) if by_factor else None,
            _Adjoint.apply(factor, g, offsets) if by_x else None,
            None,
        )


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: Tensor, x: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(factor, x)
        ctx.offsets = offsets
        return _adjoint(factor, x, offsets)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (factor, x), offsets, (by_factor, by_x, _) = ctx.saved_tensors, ctx.offsets, ctx.needs_input_grad
        return (
            _Outer.apply(x, g, offsets) if by_factor else None,
            _Forward.apply(factor, g, offsets) if by_x else None,
            None,
        )


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(y, x)
        ctx.offsets = offsets
        return _outer(y, x, offsets)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y, x), offsets, (by_y, by_x, _) = ctx.saved_tensors, ctx.offsets, ctx.needs_input_grad
        return (
            _Forward.apply(g, x, offsets) if by_y else None,
            _Adjoint.apply(g, y, offsets) if by_x else None,
            None,
        )


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: Tensor, b: Tensor, offsets: Offsets) -> Tensor:
        x = _solve(factor, b, offsets)
        ctx.save_for_backward(factor, x)
        ctx.offsets = offsets
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (factor, x), offsets, (by_factor, _, _) = ctx.saved_tensors, ctx.offsets, ctx.needs_input_grad
        v = _SolveAdjoint.apply(factor, g, offsets)
        return -_Outer.apply(v, x, offsets) if by_factor else None, v, None


class _SolveAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: Tensor, b: Tensor, offsets: Offsets) -> Tensor:
        x = _solve_adjoint(factor, b, offsets)
        ctx.save_for_backward(factor, x)
        ctx.offsets = offsets
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (factor, x), offsets, (by_factor, _, _) = ctx.saved_tensors, ctx.offsets, ctx.needs_input_grad
        v = _Solve.apply(factor, g, offsets)
        return -_Outer.apply(x, v, offsets) if by_factor else None, v, None
