"""Sets of images that are not one array: stored ones, those of several sizes, and where to write results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pylops
import pytest
import torch

import skinverse as sv
from skinverse import Measurements
from skinverse.operators import convolution, gaussian_blur

SHAPE, N = (128, 128), 70  # 70 images of 128 x 128 are read in two parts
A = pylops.Diagonal(np.full(SHAPE, 2.0, np.float32))
METHOD = sv.Landweber(A, max_steps=2)
DATA = np.random.default_rng(0).random((N, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def expected() -> Any:
    """What arrays in memory give."""
    return METHOD.fit().predict(DATA)


class Rows:
    """Rows that are read when they are asked for, and only as slices."""

    dtype, ndim = DATA.dtype, DATA.ndim

    def __init__(self, data: Any = DATA) -> None:
        self.data, self.asked = data, []
        self.shape = data.shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, slice)
        self.asked.append(len(range(len(self))[index]))
        return self.data[index]


class Items(torch.utils.data.Dataset):
    """A map-style data set."""

    def __init__(self, *arrays: Any) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, i: int) -> Any:
        row = tuple(array[i] for array in self.arrays)
        return row if len(row) > 1 else row[0]


def in_hdf5(folder: Path) -> Any:
    file = h5py.File(folder / "rows.h5", "w")
    return file.create_dataset("rows", data=DATA, chunks=(7, *SHAPE))


def in_a_memory_map(folder: Path) -> Any:
    np.save(folder / "rows.npy", DATA)
    return np.load(folder / "rows.npy", mmap_mode="r")


STORED = {
    "HDF5": in_hdf5,
    "memory map": in_a_memory_map,
    "rows": lambda _: Rows(),
    "items": lambda _: Items(DATA),
    "tensors": lambda _: Items(torch.from_numpy(DATA)),
    "pairs": lambda _: Items(np.zeros((N, 1, 1)), DATA),
}


@pytest.mark.parametrize("store", STORED.values(), ids=list(STORED))
def test_stored_rows_are_the_same_as_an_array(store: Any, tmp_path: Path, expected: Any) -> None:
    stored = store(tmp_path)
    np.testing.assert_array_equal(METHOD.predict(stored), expected)
    x, info = METHOD.predict(Measurements(stored), return_info=True)
    np.testing.assert_array_equal(x, expected)
    assert (info.n_steps == 2).all() and info.n_steps.shape == (N,)
    assert METHOD.score(DATA, stored) == METHOD.score(DATA, DATA)
    assert METHOD.score(Items(DATA), stored) == METHOD.score(DATA, DATA)


def test_little_is_read_and_written_at_once(tmp_path: Path, expected: Any) -> None:
    rows = Rows()
    out = h5py.File(tmp_path / "out.h5", "w").create_dataset("x", DATA.shape, "f4")
    assert METHOD.predict(rows, out=out) is out
    np.testing.assert_array_equal(out[:], expected)
    assert max(rows.asked) == 64  # 2**20 numbers
    assert sum(rows.asked) <= N + 2
    METHOD.score(rows, rows)
    METHOD.score(rows, DATA)
    assert max(rows.asked) == 64


@pytest.mark.parametrize("kind", [np.empty_like, lambda x: torch.empty(x.shape)], ids=["NumPy", "torch"])
def test_images_are_written_into_arrays(kind: Any, expected: Any) -> None:
    out = kind(DATA)
    x, info = METHOD.predict(DATA, out=out, return_info=True)
    assert x is out and len(info.converged) == N
    np.testing.assert_array_equal(np.asarray(out), expected)


def test_parameters_are_read_with_their_images() -> None:
    method = sv.Landweber(gaussian_blur(SHAPE, 1.0), max_steps=2).fit()
    sigma = np.linspace(0.5, 1.5, 3)[np.arange(N) % 3]
    weights = Rows((DATA > 0.1).astype(np.float32))
    few, expected = slice(0, 6), Measurements(DATA, sigma=sigma, weights=weights.data)[:6]
    got = method.predict(Measurements(Rows(), sigma=sigma, weights=weights)[few])
    np.testing.assert_array_equal(got, method.predict(expected))
    assert max(weights.asked) == 6


# ---------------------------------------------------------------------- several sizes
SIZES = [(12, 10), (9, 14), (12, 10), (16, 16)]
SEVERAL = [np.random.default_rng(1).random(size) for size in SIZES]


def blur(shape: tuple[int, ...]) -> Any:
    """Images larger than their data."""
    return convolution(np.ones((3, 3)) / 9, [n + 2 for n in shape], boundary="valid")


@pytest.mark.parametrize("operator", [None, blur], ids=["denoising", "blur"])
def test_images_of_several_sizes_are_those_of_a_loop(operator: Any) -> None:
    method = sv.TotalVariationRecon(operator, lam=0.1, max_steps=500).fit(SEVERAL, SEVERAL)
    x, info = method.predict(SEVERAL, return_info=True)
    for i, y in enumerate(SEVERAL):
        own = None if operator is None else operator(y.shape)
        alone = sv.TotalVariationRecon(own, lam=0.1, max_steps=500).fit().predict(y[None])[0]
        np.testing.assert_allclose(x[i], alone, rtol=1e-10)
    assert info.converged.shape == (4,)
    shapes = [image.shape for image in x]
    assert shapes == [tuple(n + 2 * (operator is not None) for n in size) for size in SIZES]
    score = method.score(x, SEVERAL)
    assert score == 100


def test_parameters_of_images_of_several_sizes() -> None:
    method = sv.TotalVariationRecon(blur, lam=1.0, max_steps=2000).fit()
    x = method.predict(Measurements(SEVERAL, std=[0.1, 0.1, 0.5, 0.2]))
    alone = sv.TotalVariationRecon(blur(SIZES[2]), lam=1.0, noise=0.5, max_steps=2000).fit()
    np.testing.assert_allclose(x[2], alone.predict(SEVERAL[2][None])[0], rtol=1e-10)


def test_a_method_that_learned_denoises_all_sizes() -> None:
    images = np.random.default_rng(0).random((4, 16, 16), dtype=np.float32)
    method = sv.PostProcessor(trainer=sv.Trainer(max_epochs=1)).fit(images, images)
    x = method.predict([y.astype(np.float32) for y in SEVERAL])
    assert [image.shape for image in x] == SIZES


# ---------------------------------------------------------------------- what is refused
def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Y_meas: expected pairs \(image, data\) .*, got dict in row 0"):
        METHOD.predict(Items([{"image": 1}]))
    uneven = Items([np.zeros(SHAPE), np.zeros((3, 3))])
    with pytest.raises(ValueError, match=r"one shape, got \(128, 128\) in row 0 and \(3, 3\) in row 1"):
        METHOD.predict(uneven)
    broken = DATA[:4].copy()
    broken[2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"Y_meas: expected finite values, got NaN or inf .* row 2"):
        METHOD.predict(Rows(broken))


def test_places_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"out: expected shape \(70, 128, 128\), got \(70, 5, 5\)"):
        METHOD.predict(DATA, out=np.empty((N, 5, 5)))
    with pytest.raises(ValueError, match=r"out: expected room for complex images, got float64"):
        METHOD.predict(DATA[:2] * 1j, out=np.empty((2, *SHAPE)))
    with pytest.raises(ValueError, match=r"out: expected room for images of floating .* got uint8"):
        METHOD.predict(DATA[:2], out=np.empty((2, *SHAPE), np.uint8))
    with pytest.raises(ValueError, match=r"out: expected measurements of one size"):
        sv.Tikhonov(lam=1.0).fit().predict(SEVERAL, out=np.empty((4, 12, 10)))


def test_methods_that_learn_do_so_from_images_of_one_size() -> None:
    with pytest.raises(ValueError, match="fit learns from images of one size, got a list of 3"):
        sv.PostProcessor().fit(SEVERAL, SEVERAL)


def test_operators_of_another_size_are_refused() -> None:
    method = sv.Tikhonov(lambda shape: gaussian_blur((8, 8), 1.0), lam=1.0).fit()
    with pytest.raises(ValueError, match=r"operator: .* got for \(12, 10\) one of data \(8, 8\)"):
        method.predict(SEVERAL)
    with pytest.raises(TypeError, match=r"operator: expected a pylops.LinearOperator, got NoneType"):
        sv.Tikhonov(lambda shape: None, lam=1.0).fit().predict(SEVERAL)
