"""Total variations in units of length: differences over the distances of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

from skinverse.functionals import TotalGeneralizedVariation, TotalNuclearVariation, TotalVariation

REAL = torch.float64
VOLUME = (-3, -2, -1)
KINDS: list[Any] = [TotalVariation, TotalGeneralizedVariation, TotalNuclearVariation]
every = pytest.mark.parametrize("kind", KINDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def difference(n: int, h: float) -> np.ndarray:
    """The matrix of forward differences over a distance, the last one zero."""
    return np.vstack([np.diff(np.eye(n), axis=0), np.zeros((1, n))]) / h


def gradient_matrix(dims: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Differences along each axis, one above the other, as Kronecker products."""
    blocks = []
    for k, h in enumerate(spacing):
        before, after = np.eye(int(np.prod(dims[:k]))), np.eye(int(np.prod(dims[k + 1 :])))
        blocks.append(np.kron(np.kron(before, difference(dims[k], h)), after))
    return np.vstack(blocks)


@pytest.mark.parametrize(
    ("dims", "spacing"), [((7,), (3.0,)), ((4, 5), (0.5, 2.0)), ((3, 4, 2), (5.0, 1.0, 0.25))]
)
def test_differences_are_over_the_distances(dims: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    axes, x = tuple(range(-len(dims), 0)), draw(2, *dims)
    D = gradient_matrix(dims, spacing)
    f = TotalVariation(axes=axes, spacing=spacing)
    K = f.split()[1]
    expected = (x.flatten(1).numpy() @ D.T).reshape(2, len(dims), *dims)
    assert_allclose(K(x), expected, rtol=1e-12)
    assert_allclose(f(x), np.linalg.norm(expected, axis=1).reshape(2, -1).sum(1))
    p = draw(2, len(dims), *dims, seed=1)
    assert_allclose(K.adjoint(p).flatten(1), p.flatten(1).numpy() @ D, rtol=1e-12, atol=1e-12)
    total = TotalVariation(isotropic=False, axes=axes, spacing=spacing)(x)
    assert_allclose(total, np.abs(expected).reshape(2, -1).sum(1))


@every
def test_distances_of_one_are_none(kind: Any) -> None:
    x = draw(2, 4, 3, 5)
    K, plain = (
        TotalGeneralizedVariation(axes=VOLUME, spacing=spacing).lifted().split()[1]
        if kind is TotalGeneralizedVariation
        else kind(axes=VOLUME, spacing=spacing).split()[1]
        for spacing in ((1, 1, 1), None)
    )
    z = TotalGeneralizedVariation(axes=VOLUME).pack(x) if kind is TotalGeneralizedVariation else x
    assert_array_equal(K(z), plain(z))
    assert_array_equal(K.adjoint(K(z)), plain.adjoint(plain(z)))
    assert K.norm() == plain.norm()


@every
def test_a_ramp_varies_as_much_in_both_samplings(kind: Any) -> None:
    """A slope of 3 along a depth of 8, in 9 slices or in 5: sums over pixels times their depth."""
    fine, coarse = (
        (3 * torch.arange(0, 8.5, h, dtype=REAL))[None, :, None, None].expand(1, -1, 4, 4) for h in (1, 2)
    )
    of_fine, of_coarse = kind(axes=VOLUME), kind(axes=VOLUME, spacing=(2, 1, 1))
    if kind is TotalGeneralizedVariation:  # affine images have none
        assert float(of_coarse(coarse)) < 1e-9
        bent, bent_coarse = fine.square(), coarse.square()
        ratio = float(of_coarse(bent_coarse)) / float(of_fine(bent))
        assert 0.4 < ratio < 0.6
    else:
        assert_allclose(2 * of_coarse(coarse), of_fine(fine), rtol=1e-12)
        assert_allclose(of_fine(fine), 3 * 8 * 16)


@every
@pytest.mark.parametrize("c", [0.5, 4.0])
def test_variations_are_images_over_lengths(kind: Any, c: float) -> None:
    x, spacing = draw(2, 4, 5), (3.0, 1.0)
    others = {"alpha": 2.0} if kind is TotalGeneralizedVariation else {}
    longer = {name: c * value for name, value in others.items()}
    found = kind(spacing=tuple(c * h for h in spacing), **longer)(x)
    assert_allclose(found, kind(spacing=spacing, **others)(x) / c, rtol=2e-4)


def test_the_second_derivative_is_over_the_distances_too() -> None:
    h = (2.0, 0.5)
    i, j = np.meshgrid(h[0] * np.arange(6), h[1] * np.arange(7), indexing="ij")
    x = torch.tensor(1.5 * i**2 + 2 * i * j - j**2)[None]
    K = TotalGeneralizedVariation(alpha=1.0, spacing=h).lifted().split()[1]
    field = TotalVariation(spacing=h).split()[1](x)
    e = K(torch.cat([torch.zeros_like(x)[:, None], field], 1))[0, 2:]
    assert_allclose(e[0, :4], 3.0)
    assert_allclose(e[1, :, :5], -2.0)
    assert_allclose(e[2, :5, :6], 2.0 * np.sqrt(2))


@every
@pytest.mark.parametrize(
    "spacing", [(1.0,), (1, 1, 1), (1, 0), (1, -2.0), (1, float("nan")), (1, float("inf")), ()]
)
def test_distances_are_positive_and_one_for_each_axis(kind: Any, spacing: Any) -> None:
    with pytest.raises(ValueError, match=r"spacing: expected 2 numbers > 0, one for each of the axes"):
        kind(spacing=spacing)
