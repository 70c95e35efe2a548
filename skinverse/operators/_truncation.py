"""Views of objects that are wider than the detector, continued beyond its ends."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse.operators._geometry import Scan

_FITTED = 15  # elements at an end of the detector whose view is continued
# Part of the largest value of a view from which, and up to which, what is measured at its end is taken more
# and more for an object that goes on, not for noise.
_NOTHING, _SOMETHING = 0.05, 0.1
_ROUNDING = 1e-6  # elements by which a detector that just sees the image may seem too short


def continued(views: Tensor, weights: NDArray, scan: Scan) -> tuple[Tensor, NDArray, Scan]:
    """Views and weights of rays on a detector long enough to see all of the image, and its scan.

    The square of a projection of an ellipse is a parabola: one is fitted to the elements near each end and
    continued to its zero, as for the water cylinders of Hsieh et al., "A novel reconstruction algorithm to
    extend the CT scan field-of-view", Medical Physics 31(9), 2004. Where nothing is measured at an end it
    is continued by zeros.
    """
    n, known = scan.n_detectors, scan.known
    seen = n / 2 + known.offset.min(), n / 2 - known.offset.max()  # elements on either side of the axis
    before, after = (max(0, math.ceil(known.reach - end - _ROUNDING)) for end in seen)
    wide = replace(scan, n_detectors=n + before + after, offset=scan.offset + (before - after) / 2)
    parts = [_beyond(views.flip(2), before).flip(2), views, _beyond(views, after)]
    return torch.cat(parts, 2), np.pad(weights, ((0, 0), (before, after)), mode="edge"), wide


def _beyond(views: Tensor, n: int) -> Tensor:
    """Views from the element after the last one on, ``n`` of them."""
    fitted = min(_FITTED, views.shape[2] // 2)
    if fitted < 4 or n == 0:
        return views.new_zeros((*views.shape[:2], n))
    end = views[..., -fitted:]
    mean = end[..., -(fitted // 3) :].mean(2, keepdim=True)
    peak = views.detach().abs().amax(2, keepdim=True)
    shape = _parabolas(mean.detach().abs(), end.detach().abs(), peak, n)
    # Linear in the level, for derivatives: that of a root has a pole at zero.
    return mean * shape / torch.where(mean == 0, 1, mean.detach().abs())


def _parabolas(level: Tensor, end: Tensor, peak: Tensor, n: int) -> Tensor:
    """Roots of the parabolas through squares, which fall to zero at the end of the image at the latest."""
    unit = torch.where(peak > 0, peak, 1)
    trust = ((level / unit - _NOTHING) / (_SOMETHING - _NOTHING)).clamp(0, 1)
    places = np.arange(1 - end.shape[2], 1)
    fit = np.linalg.pinv(np.vander(places, 3, increasing=True))  # (3, fitted)
    steps = np.arange(1, n + 1)
    c = (end / unit) ** 2 @ torch.from_numpy(fit.T).to(end)
    t = torch.from_numpy(np.vander(steps, 3, increasing=True).T).to(end)
    to_the_end = c[..., :1] * torch.from_numpy(1 - steps / (n + 1)).to(end)
    squares = torch.minimum(c @ t, to_the_end)
    there = torch.cumsum(squares <= 0, 2) == 0
    return trust * peak * torch.where(there, squares, 0).sqrt()
