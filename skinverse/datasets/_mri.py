"""What simulated magnetic resonance imaging has in common: coils, columns that are measured, phases."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skinverse.datasets._phantoms import grid

Array = NDArray[Any]


def coil_maps(size: int) -> Array:
    """Sensitivities of four coils: Gaussians around the corners with a sum of squares of one."""
    y, x = grid(size)
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    maps = np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 3) for a, b in corners])
    return (maps / np.sqrt((maps**2).sum(axis=0))).astype(np.complex64)


def measured_columns(size: int) -> NDArray[np.bool_]:
    """A twelfth of the columns in the centre, a quarter in all."""
    lines, centre = max(1, size // 4), max(1, size // 12)
    middle = size // 2 - centre // 2 + np.arange(centre)
    others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(size), middle))
    mask = np.zeros(size, dtype=bool)
    mask[np.concatenate([middle, others[: lines - centre]])] = True
    return mask


def phase_factors(n_samples: int, size: int, rng: np.random.Generator) -> Array:
    """``exp(i phase)``, the phase a random plane wave of less than one period."""
    y, x = grid(size)
    slopes = rng.uniform(-np.pi / 2, np.pi / 2, (n_samples, 2, 1, 1))
    return np.exp(1j * (slopes[:, 0] * x + slopes[:, 1] * y))
