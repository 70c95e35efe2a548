"""Products with the matrix of a scan whose weights are computed as they are needed, in NumPy and in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse.operators._geometry import Scan

Product = Callable[[Scan, NDArray], NDArray]


def projected(scan: Scan, images: NDArray) -> NDArray:
    """Data (n, n_views, n_detectors) of images (n, height, width)."""
    from skinverse.operators._projector import project  # numba takes a second

    return _by_real_parts(project, scan, images)


def back_projected(scan: Scan, data: NDArray) -> NDArray:
    """The adjoint."""
    from skinverse.operators._projector import back_project

    return _by_real_parts(back_project, scan, data)


def slopes(scan: Scan, images: NDArray, data: NDArray) -> NDArray:
    """Derivatives of the real inner product of data and projections in all rays, (3, n_rays)."""
    from skinverse.operators._projector import slopes

    if np.iscomplexobj(images):
        images, data = (np.concatenate([batch.real, batch.imag]) for batch in (images, data))
    return slopes(scan, images, data)


def on_cpu(product: Product, scan: Scan, batch: Tensor) -> Tensor:
    """A product of the compiled kernel, which runs on the CPU."""
    return torch.from_numpy(product(scan, as_numpy(batch))).to(batch.device)


def as_numpy(batch: Tensor) -> NDArray:
    """The numbers of a batch."""
    return batch.detach().resolve_conj().resolve_neg().cpu().numpy()


def _by_real_parts(product: Product, scan: Scan, batch: NDArray) -> NDArray:
    """A product in the precision of the batch; real and imaginary parts are images of their own."""
    if np.iscomplexobj(batch):
        real, imaginary = np.split(product(scan, np.concatenate([batch.real, batch.imag])), 2)
        return real + 1j * imaginary
    return product(scan, batch.astype(np.result_type(batch, np.float32), copy=False))
