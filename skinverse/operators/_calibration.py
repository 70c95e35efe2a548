"""Projections that are differentiable in the geometry of their scan.

All rays have the form ``a + b * row``. What a ray takes from a row is linear in both numbers between the
centres of two pixels, so that its derivatives are constant there and jump at the centres. From ``a`` and
``b``, autograd goes on to angles, offsets and distances.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skinverse.operators._geometry import Scan
from skinverse.operators._products import as_numpy, back_projected, on_cpu, projected, slopes
from skinverse.operators._rays import rays_of


def project(scan: Scan, x: Tensor) -> Tensor:
    """Data of images, differentiable in the images and once in the tensors of the scan."""
    _, *rays = rays_of(scan)
    return _Projection.apply(scan.known, x, *rays)


def back_project(scan: Scan, y: Tensor) -> Tensor:
    """The adjoint, likewise."""
    _, *rays = rays_of(scan)
    return _BackProjection.apply(scan.known, y, *rays)


class _Projection(torch.autograd.Function):
    """Of a known scan; the rays are there for the derivatives in them."""

    @staticmethod
    def forward(ctx: Any, scan: Scan, x: Tensor, *rays: Tensor) -> Tensor:
        ctx.scan = scan
        ctx.save_for_backward(x, *rays)
        return on_cpu(projected, scan, x)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Any:
        x, *rays = ctx.saved_tensors
        return None, _BackProjection.apply(ctx.scan, y, *rays), *_Slopes.apply(ctx.scan, x, y)


class _BackProjection(torch.autograd.Function):
    """The adjoint."""

    @staticmethod
    def forward(ctx: Any, scan: Scan, y: Tensor, *rays: Tensor) -> Tensor:
        ctx.scan = scan
        ctx.save_for_backward(y, *rays)
        return on_cpu(back_projected, scan, y)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Any:
        y, *rays = ctx.saved_tensors
        return None, _Projection.apply(ctx.scan, x, *rays), *_Slopes.apply(ctx.scan, x, y)


class _Slopes(torch.autograd.Function):
    """Derivatives of the inner product of data and projections in the rays."""

    @staticmethod
    def forward(ctx: Any, scan: Scan, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(slopes(scan, as_numpy(x), as_numpy(y))).to(x.device))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("projections have first derivatives in the geometry of the scan, got a second one")
