"""The parallel-beam operator: geometry, exactness, memory, and agreement with other projectors."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

from skinverse.operators import _joseph, as_torch, dot_test, parallel_beam

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
ANGLES = st.lists(st.floats(-2 * np.pi, 2 * np.pi), min_size=1, max_size=4)
LENGTHS = st.floats(0.2, 3)


def centres(n: int, spacing: float = 1.0) -> NDArray:
    return (np.arange(n) - (n - 1) / 2) * spacing


def grid(dims: tuple[int, int], pixel_size: float = 1.0) -> tuple[NDArray, NDArray]:
    """Coordinates to the right, and upwards."""
    return centres(dims[1], pixel_size)[None, :], -centres(dims[0], pixel_size)[:, None]


def distances(angles: NDArray, n: int, spacing: float, centre: tuple[float, float]) -> NDArray:
    """How far each ray passes from a point."""
    shadow = centre[0] * np.cos(angles) + centre[1] * np.sin(angles)
    return centres(n, spacing)[None, :] - shadow[:, None]


def phantom(size: int) -> NDArray:
    return resize(shepp_logan_phantom(), (size, size), anti_aliasing=True).astype(np.float32)


# ---------------------------------------------------------------- what it measures
@settings(max_examples=20)
@given(
    dims=st.tuples(st.integers(60, 75), st.integers(60, 75)),
    n_detectors=st.integers(60, 90),
    pixel_size=LENGTHS,
    spacing=LENGTHS,
    shift=st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
    angles=ANGLES,
)
def test_line_integrals_of_a_gaussian(
    dims: tuple[int, int],
    n_detectors: int,
    pixel_size: float,
    spacing: float,
    shift: tuple[float, float],
    angles: list[float],
) -> None:
    width, centre = 5 * pixel_size, (shift[0] * pixel_size, shift[1] * pixel_size)
    u, v = grid(dims, pixel_size)
    x = np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (2 * width**2))
    distance = distances(np.array(angles), n_detectors, spacing, centre)
    expected = np.sqrt(2 * np.pi) * width * np.exp(-(distance**2) / (2 * width**2))
    A = parallel_beam(dims, angles, n_detectors, pixel_size=pixel_size, spacing=spacing, dtype="float64")
    assert_allclose(A @ x, expected, atol=0.006 * np.sqrt(2 * np.pi) * width)


@pytest.mark.parametrize("dims", [(64, 64), (65, 65), (64, 91), (81, 60)])
@pytest.mark.parametrize("pixel_size", [1.0, 0.25])
def test_chords_of_a_disc(dims: tuple[int, int], pixel_size: float) -> None:
    radius, centre = 20.3 * pixel_size, (5.2 * pixel_size, -3.7 * pixel_size)
    fine = 8
    u, v = grid((dims[0] * fine, dims[1] * fine), pixel_size / fine)
    inside = (u - centre[0]) ** 2 + (v - centre[1]) ** 2 <= radius**2
    x = inside.reshape(dims[0], fine, dims[1], fine).mean(axis=(1, 3))
    angles = np.linspace(0, 2 * np.pi, 37)
    distance = distances(angles, 95, 0.9 * pixel_size, centre)
    chords = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    A = parallel_beam(dims, angles, 95, pixel_size=pixel_size, spacing=0.9 * pixel_size)
    assert np.linalg.norm(A @ x - chords) < 0.015 * np.linalg.norm(chords)


def test_angle_zero_sums_columns_and_a_right_angle_sums_rows_upwards() -> None:
    x = np.random.default_rng(0).random((4, 6))
    y = parallel_beam((4, 6), [0, np.pi / 2, np.pi], 6, pixel_size=2, dtype="float64") @ x
    assert_allclose(y[0], 2 * x.sum(axis=0))
    assert_allclose(y[1], [0, *2 * x.sum(axis=1)[::-1], 0], atol=1e-14)
    assert_allclose(y[2], y[0, ::-1])


@given(dims=SIZES, angles=ANGLES, n_detectors=st.integers(1, 15), pixel_size=LENGTHS, spacing=LENGTHS)
def test_a_ray_is_the_interpolated_image_at_its_crossings(
    dims: tuple[int, int], angles: list[float], n_detectors: int, pixel_size: float, spacing: float
) -> None:
    A = parallel_beam(dims, angles, n_detectors, pixel_size=pixel_size, spacing=spacing, dtype="float64")
    x = np.random.default_rng(0).random(dims)
    u, v = (axis.ravel() / pixel_size for axis in grid(dims, pixel_size))
    for angle, row in zip(angles, A @ x, strict=True):
        s = centres(n_detectors, spacing / pixel_size)[:, None]
        cos, sin = np.cos(angle), np.sin(angle)
        if abs(sin) < abs(cos):
            points = np.broadcast_arrays((s - v * sin) / cos, v)
        else:
            points = np.broadcast_arrays(u, (s - u * cos) / sin)
        where = [(dims[0] - 1) / 2 - points[1], points[0] + (dims[1] - 1) / 2]
        crossings = map_coordinates(x, where, order=1, mode="grid-constant")
        length = pixel_size / max(abs(sin), abs(cos))
        assert_allclose(row, length * crossings.sum(axis=1), atol=1e-9 * max(1, length))


# ---------------------------------------------------------------- one centre at every size
@pytest.mark.parametrize("dims", [(63, 63), (64, 64), (63, 64), (64, 63), (40, 65), (128, 128)])
@pytest.mark.parametrize("n_detectors", [95, 96])
def test_a_centred_disc_has_its_centre_of_mass_in_the_middle(dims: tuple[int, int], n_detectors: int) -> None:
    u, v = grid(dims)
    x = (u**2 + v**2 < 15**2).astype(float)
    y = parallel_beam(dims, np.linspace(0, 2 * np.pi, 50), n_detectors, dtype="float64") @ x
    assert_allclose(y @ centres(n_detectors) / y.sum(axis=1), 0, atol=1e-12)


@given(dims=SIZES, angles=ANGLES, n_detectors=st.integers(1, 15))
def test_turning_the_image_is_turning_the_scanner(
    dims: tuple[int, int], angles: list[float], n_detectors: int
) -> None:
    x, t = np.random.default_rng(0).random(dims), np.array(angles) / 4
    t[np.isclose(abs(np.cos(t)), abs(np.sin(t)))] += 0.1  # on a diagonal rounding chooses rows or columns
    still = parallel_beam(dims, t, n_detectors, dtype="float64")
    turned = parallel_beam(dims[::-1], t + np.pi / 2, n_detectors, dtype="float64")
    assert_allclose(turned @ np.rot90(x), still @ x, atol=1e-9)


@given(dims=SIZES, angles=ANGLES, n_detectors=st.integers(1, 15), scale=LENGTHS)
def test_lengths_scale(dims: tuple[int, int], angles: list[float], n_detectors: int, scale: float) -> None:
    x = np.random.default_rng(0).random(dims)
    unit = parallel_beam(dims, angles, n_detectors, spacing=0.7, dtype="float64")
    scaled = parallel_beam(dims, angles, n_detectors, pixel_size=scale, spacing=0.7 * scale, dtype="float64")
    assert_allclose(scaled @ x, scale * (unit @ x), atol=1e-9)


def test_the_spacing_is_the_pixel_size_unless_given() -> None:
    A = parallel_beam((4, 4), [0.3], 5, pixel_size=0.5)
    assert (A.pixel_size, A.spacing) == (0.5, 0.5)


# ---------------------------------------------------------------- agreement with astra
def astra_matrix(astra: Any, size: int, angles: NDArray, n_detectors: int) -> Any:
    projector = astra.create_projector(
        "linear",
        astra.create_proj_geom("parallel", 1.0, n_detectors, angles),
        astra.create_vol_geom(size, size),
    )
    stored = astra.projector.matrix(projector)
    matrix = astra.matrix.get(stored).astype(np.float64)
    astra.matrix.delete(stored)
    astra.projector.delete(projector)
    return matrix


@pytest.mark.parametrize("size", [64, 65, 128, 255, 256])
def test_agreement_with_astra(size: int) -> None:
    astra = pytest.importorskip("astra")
    angles, n_detectors = np.arange(20) * np.pi / 20, int(np.ceil(size * np.sqrt(2)))
    theirs = astra_matrix(astra, size, angles, n_detectors)
    A = parallel_beam((size, size), angles, n_detectors)
    y = theirs @ phantom(size).ravel()
    assert np.linalg.norm((A @ phantom(size)).ravel() - y) < 1e-4 * np.linalg.norm(y)
    assert abs(A.matrix() - theirs).max() < 1e-2  # their positions are accumulated in single precision


def test_small_matrices_agree_with_astra_entry_by_entry() -> None:
    astra = pytest.importorskip("astra")
    angles = np.linspace(0, 2 * np.pi, 13)
    theirs = astra_matrix(astra, 7, angles, 11)
    assert abs(parallel_beam((7, 7), angles, 11).matrix() - theirs).max() < 2e-6


# ---------------------------------------------------------------- adjoint, batches, derivatives
@given(dims=SIZES, angles=ANGLES, n_detectors=st.integers(1, 15), n=st.integers(1, 3))
def test_the_adjoint_is_exact(dims: tuple[int, int], angles: list[float], n_detectors: int, n: int) -> None:
    A = as_torch(parallel_beam(dims, angles, n_detectors, pixel_size=0.8, dtype="float64"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *A.dims, generator=generator, dtype=torch.float64)
    y = torch.randn(n, *A.dimsd, generator=generator, dtype=torch.float64)
    assert_allclose((A(x) * y).sum(), (x * A.adjoint(y)).sum(), rtol=0, atol=1e-12 * x.norm() * y.norm())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dot_test(dtype: str) -> None:
    dot_test(parallel_beam((16, 17), [0.1, 1.3], 20, dtype=dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_way_to_apply_it_gives_the_same(dtype: type) -> None:
    A = parallel_beam((9, 8), [0.2, 1.1, 2.5], 13, dtype=dtype)
    x = np.random.default_rng(0).random((4, 9, 8)).astype(dtype)
    columns, tolerance = x.reshape(4, -1).T, 20 * np.finfo(dtype).eps
    y = A.matmat(columns)
    assert y.dtype == dtype
    assert_allclose(
        y.T.reshape(4, 3, 13), as_torch(A)(torch.from_numpy(x)).numpy(), rtol=tolerance, atol=tolerance
    )
    assert_allclose(y[:, 1], A @ columns[:, 1], rtol=tolerance, atol=tolerance)
    assert_allclose(y, A.matrix().toarray() @ columns, rtol=tolerance, atol=tolerance)
    back = A.rmatmat(y)
    assert back.dtype == dtype
    assert_allclose(back, A.matrix().toarray().T @ y, rtol=tolerance, atol=tolerance)
    assert_allclose(back[:, 2], A.H @ y[:, 2], rtol=tolerance, atol=tolerance)


@pytest.mark.draws_globally  # gradcheck does
def test_gradients_of_any_order() -> None:
    A = as_torch(parallel_beam((5, 4), [0.2, 1.1], 6, dtype="float64"))
    x = torch.randn(
        2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    torch.autograd.gradcheck(A, x)
    torch.autograd.gradgradcheck(lambda x: A(x) ** 3, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_cuda() -> None:
    A = as_torch(parallel_beam((33, 40), np.arange(20) * np.pi / 20, 51))
    x = torch.rand(3, 33, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A(x.cuda()).cpu(), A(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(A.adjoint(A(x).cuda()).cpu(), A.adjoint(A(x)), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(
        A.filtered_adjoint(A(x).cuda()).cpu(), A.filtered_adjoint(A(x)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (3, 4), (2, 7)])
def test_a_block_keeps_some_angles(start: int, stop: int) -> None:
    angles = np.linspace(0, 3, 7)
    A = as_torch(parallel_beam((8, 9), angles, 12))
    block, alone = A.block(start, stop), as_torch(parallel_beam((8, 9), angles[start:stop], 12))
    x = torch.rand(2, 8, 9, generator=torch.Generator().manual_seed(0))
    assert block.dimsd == (stop - start, 12)
    torch.testing.assert_close(block(x), A(x)[:, start:stop])
    torch.testing.assert_close(block.adjoint(alone(x)), alone.adjoint(alone(x)))
    torch.testing.assert_close(block.filtered_adjoint(alone(x)), alone.filtered_adjoint(alone(x)))


def test_blocks_share_the_memory_of_the_whole() -> None:
    rows = _joseph.JosephMatrix(parallel_beam((8, 9), [0.1, 0.2, 0.3], 12)._rows.scan, "float32")
    block = rows.block(slice(1, 3)).whole()
    assert np.shares_memory(block.data, rows.whole().data)
    assert np.shares_memory(block.indices, rows.whole().indices)
    assert_array_equal(block.toarray(), rows.whole().toarray()[12:])


# ---------------------------------------------------------------- memory
def test_the_build_holds_little_more_than_the_matrix() -> None:
    A = parallel_beam((128, 128), np.arange(60) * np.pi / 60, 183)
    tracemalloc.start()
    matrix = A.matrix()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    assert matrix.data.dtype == np.float32
    assert peak < 2.2 * sum(part.nbytes for part in (matrix.data, matrix.indices, matrix.indptr))


@pytest.mark.parametrize(("n_detectors", "spacing"), [(95, 1.0), (200, 0.5), (60, 1.7), (5, 1.0), (3, 0.1)])
def test_the_number_of_entries_is_known_beforehand(n_detectors: int, spacing: float) -> None:
    A = parallel_beam((64, 48), np.arange(40) * np.pi / 40, n_detectors, spacing=spacing)
    assert_allclose(_joseph.n_weights(A._rows.scan), A.matrix().nnz, rtol=0.03)


def test_more_entries_than_32_bits_count() -> None:
    with pytest.raises(ValueError, match="32-bit"):
        parallel_beam((5000, 5000), np.zeros(60), 5000).matrix()


def test_pickles_and_copies_leave_the_matrix_behind() -> None:
    A = parallel_beam((64, 64), np.linspace(0, 3, 20), 91, pixel_size=0.3, spacing=0.4)
    y = A @ phantom(64)
    as_torch(A)(torch.from_numpy(phantom(64))[None])
    content = pickle.dumps(A)
    assert len(content) < 5000
    for other in (pickle.loads(content), copy.deepcopy(A)):
        assert other._rows._whole is None
        assert_array_equal(other @ phantom(64), y)
        assert_array_equal(other.angles, A.angles)
        assert (other.pixel_size, other.spacing, other.n_detectors) == (0.3, 0.4, 91)
    assert len(pickle.dumps(as_torch(A))) < 5000


def test_the_matrix_is_built_once_and_repeatable() -> None:
    arguments = ((10, 10), np.linspace(0, 3, 7), 15)
    A, B = parallel_beam(*arguments), parallel_beam(*arguments)
    assert A.matrix() is A.matrix()
    for part in ("data", "indices", "indptr"):
        assert_array_equal(getattr(A.matrix(), part), getattr(B.matrix(), part))


def test_use_does_not_change_the_content() -> None:
    A = parallel_beam((10, 10), np.linspace(0, 3, 7), 15)
    before = as_torch(A)
    A @ np.ones((10, 10))
    assert as_torch(A) is before


def test_the_detector_covers_the_image_unless_given() -> None:
    assert parallel_beam((30, 40), [0.3]).n_detectors == 50
    assert parallel_beam((30, 40), [0.3], pixel_size=2, spacing=4).n_detectors == 25
    assert parallel_beam((30, 40), [0.3, 1], offset=[-2.5, 1]).n_detectors == 55
    assert_allclose(parallel_beam((30, 40), [0.3], offset=7).matrix().sum(0).min(), 1, atol=0.15)


def test_an_offset_moves_the_rays() -> None:
    angles, x = np.array([0.1, 1.0, 2.0]), np.random.default_rng(0).random((8, 9))
    centred = parallel_beam((8, 9), angles, 21, dtype="float64") @ x
    moved = parallel_beam((8, 9), angles, 15, offset=[3, 0, -3], dtype="float64") @ x
    for row, expected, start in zip(moved, centred, (0, 3, 6), strict=True):
        assert_allclose(row, expected[start : start + 15])


@pytest.mark.parametrize("angles", [np.linspace(0, 6 * np.pi, 400), np.linspace(-4 * np.pi, 0, 300)[::-1]])
def test_several_turns(angles: NDArray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A = parallel_beam((12, 12), angles, 19, dtype="float64")
    x = np.random.default_rng(0).random((12, 12))
    assert_allclose(A @ x, parallel_beam((12, 12), np.mod(angles, 2 * np.pi), 19, dtype="float64") @ x)


def test_the_caller_keeps_his_angles() -> None:
    angles = np.array([0.1, 0.2])
    A = parallel_beam((4, 4), angles, 5)
    angles[:] = 0
    assert_array_equal(A.angles, [0.1, 0.2])


# ---------------------------------------------------------------- bad input
def test_angles_that_look_like_degrees() -> None:
    with pytest.warns(UserWarning, match=r"largest, 179.*deg2rad") as caught:
        parallel_beam((4, 4), np.arange(180), 5)
    assert caught[0].filename == __file__


def test_a_full_turn_is_no_degree() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_beam((4, 4), np.linspace(-2 * np.pi, 2 * np.pi, 9), 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": (4,)}, "height and width"),
        ({"dims": (4, 4, 4)}, "height and width"),
        ({"dims": (0, 4)}, "height.*0"),
        ({"dims": (4, 2.5)}, "width.*2.5"),
        ({"angles": []}, r"angles.*\(0,\)"),
        ({"angles": [[0.0]]}, r"angles.*\(1, 1\)"),
        ({"angles": [0.0, np.nan]}, "angles.*NaN"),
        ({"n_detectors": 0}, "n_detectors.*0"),
        ({"pixel_size": 0.0}, "pixel_size.*0.0"),
        ({"offset": [1.0, 2.0]}, r"offset.*each of 1 views.*\(2,\)"),
        ({"offset": np.inf}, "offset.*infinity"),
        ({"spacing": -1.0}, "spacing.*-1.0"),
        ({"spacing": np.inf}, "spacing.*inf"),
        ({"dtype": "int32"}, "dtype.*int32"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parallel_beam(**({"dims": (4, 4), "angles": [0.0], "n_detectors": 5} | change))


def test_it_can_be_written_out_densely() -> None:
    A = parallel_beam((4, 5), [0.3, 1.2], 7)
    np.testing.assert_allclose(A.todense(), A.matrix().toarray())
