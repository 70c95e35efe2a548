"""Scans of a plane: where the rays of every view run."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

# Median step between neighbouring views, in radians, above which angles beyond a turn look like degrees.
_LARGE_STEP = 0.5


@dataclass(frozen=True, eq=False)
class Scan(ABC):
    """Views of an image: all that determines the matrix.

    Where derivatives in the geometry are wanted, angles, offset and distances are tensors.
    """

    distances: ClassVar[tuple[str, ...]] = ()  # names of those that a scan of this kind has

    dims: tuple[int, int]
    angles: NDArray[np.float64]
    n_detectors: int
    offset: NDArray[np.float64]  # of every view, where the rotation axis meets the detector, in elements
    spacing: float
    pixel_size: float

    def __post_init__(self) -> None:
        if self.xp is np:
            for array in (self.angles, self.offset):
                array.flags.writeable = False  # the matrix, once built, is that of these numbers

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __getitem__(self, views: slice | NDArray[Any]) -> Self:
        """The same scan with some of its views."""
        return replace(self, angles=self.angles[views], offset=self.offset[views])

    def at(self, parameters: Mapping[str, Any]) -> Self:
        """The scan with these angles and distances, and with one offset or that of every view."""
        offset = parameters["offset"] + 0 * parameters["angles"]
        return replace(self, **{**parameters, "offset": offset})

    @property
    def known(self) -> Self:
        """The scan in numbers, without derivatives."""
        if self.xp is np:
            return self
        names = ("angles", "offset", *self.distances)
        tensors = {name: getattr(self, name).detach().cpu().double() for name in names}
        numbers: Any = {n: v.numpy().copy() if v.ndim else float(v) for n, v in tensors.items()}
        return replace(self, **numbers)

    @property
    def xp(self) -> Any:
        """The library of arrays: NumPy, or torch where derivatives in the geometry are wanted."""
        angles: Any = self.angles
        return torch if isinstance(angles, Tensor) else np

    @property
    def n_rays(self) -> int:
        """Number of rows of the matrix."""
        return len(self.angles) * self.n_detectors

    @property
    def dimsd(self) -> tuple[int, int]:
        """Shape of the data."""
        return len(self.angles), self.n_detectors

    @property
    def detectors(self) -> NDArray[np.float64]:
        """Positions of the detector elements of every view, as lengths from the axis's own."""
        centred = self.xp.arange(self.n_detectors, dtype=self.xp.float64) - (self.n_detectors - 1) / 2
        return (centred - self.offset[:, None]) * self.spacing

    @property
    def _radius(self) -> float:
        """Half the diagonal of the image."""
        return math.hypot(*self.dims) / 2 * self.pixel_size

    @property
    def detector(self) -> tuple[Any, ...]:
        """All that views have in common."""
        own = (field.name for field in fields(self) if field.name not in ("angles", "offset"))
        return (type(self).__name__, *(getattr(self, name) for name in own))

    @property
    @abstractmethod
    def mirrors(self) -> bool:
        """Whether a view from behind is the mirror image of the one from before."""

    @property
    @abstractmethod
    def reach(self) -> float:
        """Elements from the axis to the outermost ray that may meet the image."""

    @property
    @abstractmethod
    def axis_spacing(self) -> float:
        """Distance between neighbouring rays near the axis."""

    @property
    @abstractmethod
    def fan_angles(self) -> NDArray[np.float64]:
        """Angle of every ray to the one through the axis, (n_views, n_detectors)."""

    @property
    @abstractmethod
    def elements(self) -> float:
        """Elements by which the places of points on the detector are multiplied."""

    @property
    @abstractmethod
    def frames(self) -> NDArray[np.float64]:
        """Of every view, how far points (1, u, v) are across its central ray, and along it: (n_views, 2, 3).

        A point is seen ``elements * across / along`` elements from the axis, or, by a curved detector, the
        angle of the two takes the place of their ratio.
        """

    @property
    @abstractmethod
    def curved(self) -> bool:
        """Whether elements are at equal angles."""

    @abstractmethod
    def lines(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Angles and distances from the axis of all rays, ``u cos(angle) + v sin(angle) = distance``.

        Both can be broadcast to (n_views, n_detectors).
        """


@dataclass(frozen=True, eq=False)
class ParallelScan(Scan):
    """Rays of a view that are parallel."""

    @property
    def mirrors(self) -> bool:
        return not self.offset.any()

    @property
    def reach(self) -> float:
        return self._radius / self.spacing

    @property
    def axis_spacing(self) -> float:
        return self.spacing

    @property
    def fan_angles(self) -> NDArray[np.float64]:
        """Zero."""
        return self.xp.zeros(self.dimsd, dtype=self.xp.float64)

    @property
    def elements(self) -> float:
        return 1 / self.spacing

    @property
    def frames(self) -> NDArray[np.float64]:
        """All points are at the same distance along the ray."""
        xp = self.xp
        zeros, ones = xp.zeros_like(self.angles), xp.ones_like(self.angles)
        across = [zeros, xp.cos(self.angles), xp.sin(self.angles)]
        return xp.stack([xp.stack(across, 1), xp.stack([ones, zeros, zeros], 1)], 1)

    @property
    def curved(self) -> bool:
        return False

    def lines(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The angle of the view, and the position on the detector."""
        return self.angles[:, None], self.detectors


@dataclass(frozen=True, eq=False)
class FanScan(Scan):
    """Rays of a view that leave one source."""

    distances: ClassVar[tuple[str, ...]] = ("source_distance", "detector_distance")

    source_distance: float
    detector_distance: float
    curved: bool = False

    mirrors = False

    @property
    def reach(self) -> float:
        largest = math.asin(self._radius / self.source_distance)
        return (largest if self.curved else math.tan(largest)) * self.elements

    @property
    def axis_spacing(self) -> float:
        return self.source_distance / self.elements

    @property
    def fan_angles(self) -> NDArray[np.float64]:
        """Angle of every ray to the one through the axis, (n_views, n_detectors)."""
        positions = self.detectors / (self.source_distance + self.detector_distance)
        return positions if self.curved else self.xp.arctan(positions)

    def lines(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A ray at an angle to the central one is parallel to that of another view."""
        fan = self.fan_angles
        return self.angles[:, None] - fan, self.source_distance * self.xp.sin(fan)

    @property
    def elements(self) -> float:
        """Elements from the source to the detector."""
        return (self.source_distance + self.detector_distance) / self.spacing

    @property
    def frames(self) -> NDArray[np.float64]:
        """Seen from the source, in units of its distance from the axis."""
        xp = self.xp
        cos, sin = xp.cos(self.angles), xp.sin(self.angles)
        zeros, far = xp.zeros_like(cos), self.source_distance * xp.ones_like(cos)
        across, along = xp.stack([zeros, cos, sin], 1), xp.stack([far, -sin, cos], 1)
        return xp.stack([across, along], 1) / self.source_distance


# ---------------------------------------------------------------- arguments
def height_and_width(dims: tuple[int, int]) -> tuple[int, int]:
    """The sizes of an image."""
    if np.shape(dims) != (2,):
        raise ValueError(f"dims: expected the height and width of the image, got {dims!r}")
    return positive_int(dims[0], "height"), positive_int(dims[1], "width")


def positive_int(value: int, name: str) -> int:
    """A number of things."""
    if value != int(value) or value < 1:
        raise ValueError(f"{name}: expected a positive whole number, got {value!r}")
    return int(value)


def length(value: float, name: str) -> float:
    """A length."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive length, got {value!r}")
    return float(value)


def offsets(offset: ArrayLike, n_views: int) -> NDArray[np.float64]:
    """The offset of all views, or that of every view."""
    values = np.array(offset, dtype=np.float64)
    if values.shape not in ((), (n_views,)):
        raise ValueError(f"offset: expected a number or one for each of {n_views} views, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("offset: expected finite numbers, got NaN or infinity")
    return values


def covering(dims: tuple[int, int], offset: NDArray[np.float64], pixels_per_element: float) -> int:
    """Elements of a detector that sees the whole image from every side, wherever the axis meets it."""
    return math.ceil(math.hypot(*dims) / pixels_per_element + 2 * np.abs(offset).max())


def radians(angles: ArrayLike) -> NDArray[np.float64]:
    """Angles, with a warning where they look like degrees."""
    values = np.array(angles, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"angles: expected a non-empty one-dimensional array, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("angles: expected finite numbers, got NaN or infinity")
    largest = np.abs(values).max()
    if largest > 2 * np.pi + 1e-6 and _step(values) > _LARGE_STEP:
        warnings.warn(
            f"angles are in radians, but their largest, {largest:g}, and the steps between them look like "
            "degrees: use numpy.deg2rad, or numpy.mod(angles, 2 * numpy.pi) if they are radians",
            UserWarning,
            stacklevel=3,
        )
    return values


def _step(angles: NDArray[np.float64]) -> float:
    """Median distance between neighbours, in whatever order they come; of one angle its size."""
    different = np.unique(angles)
    return float(np.median(np.diff(different))) if different.size > 1 else abs(float(different[0]))
