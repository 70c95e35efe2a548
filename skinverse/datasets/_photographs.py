"""Photographs from the wheels of scikit-image and scikit-learn."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from skinverse._defaults import RandomState, numpy_generator
from skinverse.datasets._sizes import positive

Array = NDArray[Any]

# Files that lie inside the wheels of scikit-image and scikit-learn; no photograph is in both lists.
_PHOTOGRAPHS = {
    "train": (
        ("skimage.data", "brick.png"),
        ("skimage.data", "coffee.png"),
        ("skimage.data", "grass.png"),
        ("skimage.data", "gravel.png"),
        ("skimage.data", "hubble_deep_field.jpg"),
        ("skimage.data", "ihc.png"),
        ("skimage.data", "motorcycle_left.png"),
        ("skimage.data", "retina.jpg"),
        ("skimage.data", "rocket.jpg"),
        ("sklearn.datasets.images", "flower.jpg"),
    ),
    "test": (
        ("skimage.data", "astronaut.png"),
        ("skimage.data", "camera.png"),
        ("skimage.data", "chelsea.png"),
        ("skimage.data", "coins.png"),
        ("skimage.data", "moon.png"),
        ("sklearn.datasets.images", "china.jpg"),
    ),
}
_LARGEST = 300  # shorter side of the smallest photograph


def load_photographs(
    size: int = 128,
    *,
    subset: str = "all",
    n_patches: int | None = None,
    dtype: DTypeLike = np.float32,
    random_state: RandomState = None,
    channel_axis: int | None = None,
) -> Array:
    """Photographs in [0, 1] from the packages of scikit-image and scikit-learn; nothing is downloaded.

    Parameters
    ----------
    size : int, default=128
        Pixels along each side, at most 300.
    subset : {"train", "test", "all"}, default="all"
        The ten photographs to train on (brick, coffee, grass, gravel, hubble_deep_field, ihc,
        motorcycle_left, retina, rocket, flower), the six to test on (astronaut, camera, chelsea, coins,
        moon, china), or all of them in this order.
    n_patches : int or None, default=None
        None gives the largest central square of each photograph. A number gives so many random squares,
        each from a random photograph and with a side between ``size`` and the photograph's (uniform in the
        logarithm).
    dtype : dtype, default=float32
        Data type of the images.
    random_state : int, Generator, RandomState or None, default=None
        Chooses the patches; not used without ``n_patches``.
    channel_axis : int or None, default=None
        Which axis of one image holds the three colours: -1 gives (size, size, 3), 0 gives (3, size, size).
        None gives grey images.

    Returns
    -------
    ndarray of shape (n_samples, size, size), or with three colours
        The squares, reduced to ``size`` with anti-aliasing.

    Raises
    ------
    ValueError
        If ``size``, ``n_patches`` or ``channel_axis`` is out of range or ``subset`` unknown.

    Examples
    --------
    >>> from skinverse.datasets import load_photographs
    >>> load_photographs(64, subset="test").shape
    (6, 64, 64)
    """
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"size: expected 1 to {_LARGEST} pixels, got {size}")
    if channel_axis is not None and not -3 <= channel_axis < 3:
        raise ValueError(f"channel_axis: expected None or an axis of three, got {channel_axis}")
    photographs = [_read(*source, colour=channel_axis is not None) for source in _sources(subset)]
    if n_patches is None:
        squares = [_central_square(photograph) for photograph in photographs]
    else:
        rng = numpy_generator(random_state)
        chosen = rng.integers(len(photographs), size=positive(n_patches, "n_patches"))
        squares = [_random_square(photographs[i], size, rng) for i in chosen]
    images = np.stack([_reduced(square, size) for square in squares]).astype(dtype)
    return images if channel_axis is None else np.moveaxis(images, -1, channel_axis % 3 + 1)


def _sources(subset: str) -> tuple[tuple[str, str], ...]:
    if subset == "all":
        return _PHOTOGRAPHS["train"] + _PHOTOGRAPHS["test"]
    if subset not in _PHOTOGRAPHS:
        raise ValueError(f"subset: expected 'train', 'test' or 'all', got {subset!r}")
    return _PHOTOGRAPHS[subset]


def _read(package: str, name: str, *, colour: bool) -> Array:
    from skimage.color import gray2rgb, rgb2gray
    from skimage.io import imread

    photograph = imread(Path(str(files(package) / name)))
    if colour:
        return (photograph[..., :3] if photograph.ndim == 3 else gray2rgb(photograph)) / 255
    return rgb2gray(photograph[..., :3]) if photograph.ndim == 3 else photograph / 255


def _central_square(photograph: Array) -> Array:
    side = min(photograph.shape[:2])
    top, left = ((n - side) // 2 for n in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]


def _random_square(photograph: Array, size: int, rng: np.random.Generator) -> Array:
    side = round(math.exp(rng.uniform(math.log(size), math.log(min(photograph.shape[:2])))))
    top, left = (int(rng.integers(n - side + 1)) for n in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]


def _reduced(square: Array, size: int) -> Array:
    from skimage.transform import resize

    return np.clip(resize(square, (size, size, *square.shape[2:]), anti_aliasing=len(square) > size), 0, 1)
