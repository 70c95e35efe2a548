"""Total nuclear variation against the singular values of each pixel's matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

from skinverse.functionals import GroupNorm, NuclearNorm, TotalNuclearVariation, TotalVariation

REAL, COMPLEX = torch.float64, torch.complex128
VOLUME = (-4, -3, -2)


def draw(*shape: int, dtype: torch.dtype = REAL, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def hard(d: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Matrices (1, d, channels, 1, 80) as they are met in images, and the worst cases."""
    rng = np.random.default_rng(0)
    k = min(d, channels)
    values = {
        "any": rng.uniform(0, 3, (20, k)),
        "zero": np.zeros((10, k)),
        "equal": np.full((10, k), 1.7),
        "nearly equal, at the edge of the ball": 1 + 1e-7 * rng.normal(size=(10, k)),
        "of rank one": np.eye(1, k) * rng.uniform(0, 3, (10, 1)),
        "nearly of rank one": rng.uniform(0, 3, (10, 1)) * 1e-6 ** np.arange(k),
        "tiny": 1e-30 * rng.uniform(0, 3, (10, k)),
    }
    S = np.concatenate(list(values.values()))
    parts = [rng.normal(size=(2, len(S), n, k)) for n in (d, channels)]
    U, V = (np.linalg.qr(p[0] + 1j * p[1] if dtype.is_complex else p[0])[0] for p in parts)
    matrices = (U * S[:, None]) @ V.conj().swapaxes(-2, -1)
    return torch.from_numpy(np.moveaxis(matrices, 0, -1))[None, :, :, None].to(dtype)


def svd(p: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the matrices (n, d, channels, *space) in double precision."""
    double = COMPLEX if p.is_complex() else REAL
    U, S, Vh = torch.linalg.svd(p.to(double).movedim((1, 2), (-2, -1)), full_matrices=False)
    return U.numpy(), S.numpy(), Vh.numpy()


def with_values(p: Tensor, S: np.ndarray) -> np.ndarray:
    """The matrices with other singular values."""
    U, _, Vh = svd(p)
    return np.moveaxis((U * S[..., None, :]) @ Vh, (-2, -1), (1, 2))


@pytest.mark.parametrize(("d", "channels"), [(1, 3), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize(
    ("dtype", "tol"), [(REAL, 1e-13), (COMPLEX, 1e-13), (torch.float32, 2e-6), (torch.complex64, 2e-6)]
)
def test_singular_values_are_summed_shrunk_and_clipped(d: int, channels: int, dtype, tol: float) -> None:
    p, f = hard(d, channels, dtype), NuclearNorm()
    S = svd(p)[1]
    assert_allclose(f(p), S.sum((1, 2, 3)), rtol=tol)
    assert_allclose(f.prox_conjugate(p, 1.0), with_values(p, S.clip(max=1)), atol=3 * tol)
    assert_allclose(f.prox(p, 0.4), with_values(p, (S - 0.4).clip(0)), atol=3 * tol)
    inside = f.prox_conjugate(p, 1.0)
    assert_array_equal(f.conjugate(inside), 0)
    assert_array_equal(f.conjugate(1.01 * inside), torch.inf)


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_single_precision_has_room_for_any_unit(factor: float) -> None:
    p, f = hard(3, 3, torch.float32)[..., :40], NuclearNorm()
    assert_allclose(f(factor * p) / factor, f(p), rtol=1e-5)
    assert_allclose(f.prox(factor * p, 0.4 * factor) / factor, f.prox(p, 0.4), atol=1e-5)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX, torch.float32])
def test_one_channel_is_isotropic_total_variation(dtype) -> None:
    x = draw(2, 1, 6, 7, dtype=dtype)
    spaced = {"spacing": (3, 0.5)}
    for images, axes in [(x, (-2, -1)), (x[:, 0], (-2, -1)), (x.movedim(1, -1), (-3, -2))]:
        f, g = (kind(axes=axes, **spaced) for kind in (TotalNuclearVariation, TotalVariation))
        assert_array_equal(f(images), g(images))
        (outer, K), (group, _) = f.split(), g.split()
        for change in (lambda norm, p: norm.prox(p, 0.3), lambda norm, p: norm.prox_conjugate(p, 0.3)):
            assert_array_equal(change(outer, K(images)), change(group, K(images)))


@pytest.mark.parametrize("axes", [(-2, -1), (-3, -2), VOLUME])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_channels_may_be_anywhere(axes, dtype) -> None:
    x = draw(2, *(4, 5, 6, 3)[-len(axes) - 1 :], dtype=dtype)
    channel = ({-k - 1 for k in range(x.ndim - 1)} - set(axes)).pop()
    K = TotalNuclearVariation(axes=axes).split()[1]
    pixels = K(x).movedim(channel, 2)
    f = TotalNuclearVariation(axes=axes)
    assert_allclose(f(x), svd(pixels)[1].reshape(2, -1).sum(1), rtol=1e-12)
    assert_allclose(f(x), TotalNuclearVariation(axes=tuple(range(-len(axes), 0)))(x.movedim(channel, 1)))


def test_several_axes_of_channels_are_one() -> None:
    x = draw(2, 3, 2, 5, 4)
    f = TotalNuclearVariation()
    assert_allclose(f(x), f(x.flatten(1, 2)), rtol=1e-12)
    (outer, K), p = f.split(), draw(2, 2, 3, 2, 5, 4, seed=1)
    assert_allclose(outer.prox(p, 0.5).flatten(2, 3), outer.prox(p.flatten(2, 3), 0.5), atol=1e-14)
    assert K(x).shape == p.shape


def test_mixing_channels_orthogonally_changes_nothing() -> None:
    x = draw(3, 4, 6, 7)
    Q = torch.linalg.qr(draw(4, 4, seed=1))[0]
    mixed = torch.einsum("ij,njhw->nihw", Q, x)
    assert_allclose(TotalNuclearVariation()(mixed), TotalNuclearVariation()(x), rtol=1e-12)
    assert (TotalVariation()(mixed) / TotalVariation()(x) - 1).abs().max() > 1e-3


def test_edges_of_all_channels_in_one_place_cost_least() -> None:
    """Then all matrices have rank one, and their singular value is the Frobenius norm."""
    edges, weights = draw(2, 6, 7), torch.tensor([1.0, -2.0, 0.5], dtype=REAL)
    x = weights[:, None, None] * edges[:, None]
    found = TotalNuclearVariation()(x)
    assert_allclose(found, weights.norm() * TotalVariation()(edges), rtol=1e-12)
    apart = torch.stack([c * edge for c, edge in zip(weights, draw(3, 6, 7, seed=1), strict=True)])[None]
    frobenius = GroupNorm()(TotalVariation().split()[1](apart).flatten(1, 2))
    assert TotalNuclearVariation()(apart) > 1.1 * frobenius


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_derivatives_at_kinks_are_subgradients(dtype) -> None:
    """``f(z) >= f(x) + <g, z - x>`` for every ``z``, also where the image is flat and where ranks are low."""
    f, x = TotalNuclearVariation(), torch.zeros(1, 3, 6, 6, dtype=dtype)
    x[:, :2, 2:5, 3:] = 1
    x[:, 2, :3] = 2
    x.requires_grad_()
    (g,) = torch.autograd.grad(f(x).sum(), x)
    for seed, scale in [(1, 1e-3), (2, 1.0), (3, 1e3)]:
        step = scale * draw(20, 3, 6, 6, dtype=dtype, seed=seed)
        slope = (g.conj() * step).real.sum((1, 2, 3))
        assert (f(x.detach() + step) >= f(x.detach()) + slope - 1e-9 * scale).all()
    y = draw(1, 3, 4, 4, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(f, (y,))
