"""Promises on the axes of images: which of them are space, and which one holds channels."""

from __future__ import annotations

from functools import partial

import numpy as np

from skinverse._checks._expect import expect, expect_refusal
from skinverse._checks._promise import promise
from skinverse._checks._subject import Array, Reconstructions, Subject

# Relative change that is none: of what is trained in single precision, and of what is solved for tightly.
_LEARNED, _COMPUTED = 1e-3, 1e-4
# Images of three axes, all different, of which the smallest could be colours.
_DIMS = (3, 6, 5)


@promise()
def volumes(subject: Subject) -> None:
    """Images of three axes are volumes, which may be turned, or are refused by the name of channel_axis."""
    images = subject.images(2, _DIMS)
    try:
        found = _denoised(subject, images)
        x = found.make(True)
    except Exception:
        problem = subject.denoising(images)
        refused = partial(subject.new(problem).fit, problem.images, problem.data)
        expect_refusal(refused, "a set of volumes", naming="channel_axis", kinds=ValueError)
        return
    expect(x.shape == images.shape, f"volumes of shape {images.shape} become {x.shape}")
    expect(bool(np.isfinite(x).all()), "volumes become infinite or NaN")
    if subject.learns:  # what was learned may tell directions apart
        return
    order = (0, 3, 1, 2)
    turned = _denoised(subject, images.transpose(order))
    change = turned.change_from(found.mapped(lambda x: x.transpose(order)), _COMPUTED)
    expect(change <= _COMPUTED, f"turning a volume changes its reconstruction by {change:.1e} relative")


@promise(made_by=lambda subject: subject.has("channel_axis"))
def colour(subject: Subject) -> None:
    """Channels may be on any axis, which ``channel_axis`` names, and are no steps in space."""
    images = subject.images(2, _DIMS)
    expected, tol = _denoised(subject, images, 0), _LEARNED if subject.learns else _COMPUTED
    last = _denoised(subject, np.moveaxis(images, 1, -1), -1).mapped(lambda x: np.moveaxis(x, -1, 1))
    change = last.change_from(expected, tol)
    expect(change <= tol, f"channel_axis=-1 in place of 0 changes images by {change:.1e} relative")
    if subject.learns:  # what was learned may tell channels apart
        return
    moved = _denoised(subject, images[:, [1, 2, 0]], 0)
    change = moved.change_from(expected.mapped(lambda x: x[:, [1, 2, 0]]), tol)
    expect(change <= tol, f"another order of the channels changes images by {change:.1e} relative")


def _denoised(subject: Subject, images: Array, channel_axis: int | None = None) -> Reconstructions:
    """Reconstructions of images with noise that does not depend on their layout."""
    params = {} if channel_axis is None else {"channel_axis": channel_axis}
    noisy = images + 0.05 * np.sin(100 * images)
    problem = subject.denoising(images)._replace(data=np.abs(noisy) if subject.counted else noisy)
    return subject.solved(subject.fit_steadily(problem, **params), problem.data)
