"""Which axes of the data have neighbours: that of each map, and of maps made of others."""

from __future__ import annotations

import numpy as np
import pylops
import pytest
from pylops.signalprocessing import DCT, FFT2D, Convolve2D
from scipy.sparse.linalg import aslinearoperator

from skinverse.operators import as_torch, fourier_sampling, gaussian_blur, inpainting, parallel_beam

DIMS = (4, 6)
IMAGE = pylops.Identity(DIMS)
CT = parallel_beam(DIMS, np.arange(5), 7)
MASK = np.random.default_rng(0).random(DIMS) < 0.5
COILS = np.ones((3, *DIMS), complex)
T, F = True, False


def rows(index: list[int]) -> pylops.LinearOperator:
    return pylops.Restriction(CT.dimsd, index, axis=0)


def shaped(operator: pylops.LinearOperator, *dimsd: int) -> pylops.LinearOperator:
    operator.dimsd = dimsd
    return operator


def unknown(dimsd: tuple[int, ...]) -> pylops.LinearOperator:
    operator = pylops.LinearOperator(aslinearoperator(np.ones((6, 24))))
    operator.dims, operator.dimsd = DIMS, dimsd
    return operator


KNOWN = {
    "image": (IMAGE, (T, T)),
    "blur": (gaussian_blur(DIMS, 1.0), (T, T)),
    "convolution": (Convolve2D(DIMS, np.ones((3, 3)), offset=(1, 1)), (T, T)),
    "derivative": (pylops.FirstDerivative(DIMS, axis=1), (T, T)),
    "gradient": (pylops.Gradient(DIMS), (F, T, T)),
    "sinogram": (CT, (T, T)),
    "some pixels": (inpainting(MASK), (F,)),
    "samples": (fourier_sampling(MASK), (T, T)),
    "samples of coils": (fourier_sampling(MASK, coil_maps=COILS), (F, T, T)),
    "images of coils": (shaped(pylops.VStack([pylops.Diagonal(c) for c in COILS]), 3, *DIMS), (F, T, T)),
    "spectra of coils": (
        FFT2D((3, *DIMS), axes=(1, 2)) @ pylops.VStack([pylops.Diagonal(c) for c in COILS]),
        (F, T, T),
    ),
    "spectrum": (FFT2D(DIMS), (T, T)),
    "masked spectrum": (pylops.Diagonal(MASK.astype(complex)) @ FFT2D(DIMS), (T, T)),
    "cosine transform": (DCT(DIMS), (T, T)),
    "rows of a matrix": (pylops.MatrixMult(np.ones((3, 4)), otherdims=(6,)), (F, T)),
    "matrix": (pylops.MatrixMult(np.ones((3, 4))), (F,)),
    "every second row": (rows([0, 2, 4]) @ CT, (T, T)),
    "the last row": (rows([4]) @ CT, (F, T)),  # nothing is beside it
    "some rows": (rows([0, 3, 4]) @ CT, (F, T)),
    "rows in another order": (rows([1, 0, 2]) @ CT, (F, T)),
    "weighted": (pylops.Diagonal(np.ones(CT.dimsd)) @ CT, (T, T)),
    "weighted as a list": (pylops.Diagonal(np.ones(35)) @ CT, (F,)),
    "scaled": (2.0 * CT, (T, T)),
    "sum": (IMAGE + gaussian_blur(DIMS, 1.0), (T, T)),
    "conjugate": (FFT2D(DIMS).conj(), (T, T)),
    "real part": (IMAGE.toreal(), (T, T)),
    "twice": (CT.H @ CT, (T, T)),
    "padded": (pylops.Pad(DIMS, ((1, 1), (0, 2))), (T, T)),
    "turned": (pylops.Transpose((2, *DIMS), (1, 2, 0)), (T, T, T)),
    "turned stack": (
        pylops.Transpose((3, *DIMS), (1, 2, 0)) @ pylops.VStack([IMAGE, IMAGE, IMAGE]),
        (T, T, F),
    ),
    "sum along an axis": (pylops.Sum((3, *DIMS), axis=0), (T, T)),
    "sum of a stack": (pylops.Sum((3, *DIMS), axis=0) @ pylops.VStack([IMAGE] * 3), (T, T)),
    "two sinograms": (shaped(pylops.VStack([CT, CT]), 2, 5, 7), (F, T, T)),
    "two sizes": (pylops.VStack([CT, parallel_beam(DIMS, np.arange(2), 7)]), (F,)),
    "blocks": (pylops.BlockDiag([CT, CT]), (F, T, T)),
    "blocks of two sizes": (pylops.BlockDiag([CT, IMAGE]), (F,)),
    "blocks after a stack": (pylops.BlockDiag([IMAGE, IMAGE]) @ pylops.VStack([IMAGE, IMAGE]), (F, T, T)),
    "beside each other": (pylops.HStack([CT, 2 * CT]), (T, T)),
    "unknown with a shape": (unknown((2, 3)), (T, T)),
    "unknown": (unknown((6,)), (F,)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_axes_that_have_neighbours(name: str) -> None:
    operator, expected = KNOWN[name]
    linear = as_torch(operator)
    assert len(linear.neighbours) == len(linear.dimsd)
    assert linear.neighbours == expected


def test_blocks_of_rows_have_the_neighbours_of_the_whole() -> None:
    assert as_torch(2.0 * CT).block(1, 3).neighbours == (T, T)
    assert as_torch(fourier_sampling(MASK, coil_maps=COILS)).block(0, 2).neighbours == (F, T, T)


def test_another_shape_keeps_the_axes_that_it_has() -> None:
    operator = pylops.VStack([CT, CT])
    for dimsd, expected in {
        (10, 7): (F, T),
        (70,): (F,),
        (1, 2, 5, 7): (F, F, T, T),
        (2, 35): (F, F),
        (2, 5, 1, 7): (F, T, F, T),
    }.items():
        operator.dimsd = dimsd
        assert as_torch(operator).neighbours == expected
