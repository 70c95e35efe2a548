"""Fourier samples with the origin of the image in its centre or its corner."""

import warnings

import numpy as np
import pylops
import pytest
import torch

import skinverse
from skinverse import Tikhonov, ZeroFilled
from skinverse.datasets import load_photographs, shepp_logan
from skinverse.operators import as_torch, dot_test, fourier_sampling

rng = np.random.default_rng(0)


def centred(x):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (7, 9), (8, 9), (5, 6)])
@pytest.mark.parametrize("coils", [None, 2])
def test_convention_of_bart_in_every_size(shape, coils):
    maps = None if coils is None else rng.standard_normal((coils, *shape)) + 1j
    mask = rng.random(shape) > 0.4
    A = fourier_sampling(mask, maps, centred=True)
    x = rng.standard_normal((3, *shape)) + 1j * rng.standard_normal((3, *shape))
    expected = centred(x if maps is None else x[:, None] * maps) * mask
    np.testing.assert_allclose(as_torch(A)(torch.from_numpy(x)).numpy(), expected, atol=1e-13)
    np.testing.assert_allclose((A @ x[0]).reshape(expected[0].shape), expected[0], atol=1e-13)
    assert dot_test(A) < 1e-12


def test_even_sizes_are_signs_and_no_copies():
    (transform,) = (
        part for part in as_torch(fourier_sampling(np.ones((8, 6), bool), centred=True))._parts[1:]
    )
    assert transform._before == transform._after == ()


def test_full_data_are_inverted_and_stored(tmp_path):
    x = rng.standard_normal((2, 8, 9)) + 0j
    A = fourier_sampling(np.ones((8, 9), bool), centred=True)
    Y = centred(x)
    method = ZeroFilled(A).fit()
    np.testing.assert_allclose(method.predict(Y), x, atol=1e-12)
    method.save(tmp_path / "m.skinverse")
    np.testing.assert_allclose(skinverse.load(tmp_path / "m.skinverse").predict(Y), x, atol=1e-12)


n = 64
k = np.abs(np.arange(n) - n // 2)
MASKS = {
    "full": np.ones((n, n), bool),
    "dense columns": np.tile((np.arange(n) % 2 == 0) | (k < 5), (n, 1)),
    "random columns": np.tile((rng.random(n) < 0.25) | (k < 4), (n, 1)),
    "random": rng.random((n, n)) < 0.3,
    "every fourth column": np.tile(np.arange(n) % 4 == 0, (n, 1)),
    "without the zero frequency": (k[:, None] > 0) | (k > 0),
    "lowest": (k[:, None] < 6) & (k < 6),
}
PHANTOM = np.asarray(shepp_logan(n), dtype=complex).reshape(1, n, n)


@pytest.mark.parametrize("name", ["full", "dense columns", "random columns", "lowest"])
@pytest.mark.parametrize("convention", [False, True])
def test_data_of_the_other_convention_warn(name, convention):
    A, B = (fourier_sampling(MASKS[name], centred=c) for c in (convention, not convention))
    Y = as_torch(A)(torch.from_numpy(PHANTOM)).numpy()
    with pytest.warns(UserWarning, match=f"centred={convention}"):
        Tikhonov(B, lam=1e-3).fit().predict(Y)
    with pytest.warns(UserWarning, match=f"centred={convention}"):
        Tikhonov(B, lam=1e-3).fit(None, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroFilled(A).fit(None, Y).predict(Y)


@pytest.mark.parametrize("name", MASKS)
def test_images_that_are_full_and_noise_do_not_warn(name):
    photographs = load_photographs(n, n_patches=8, random_state=0) + 0j
    noise = rng.standard_normal((2, n, n)) + 0j
    for convention in (False, True):
        A = fourier_sampling(MASKS[name], centred=convention)
        for images in (*photographs[:, None], photographs, noise):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ZeroFilled(A).fit().predict(as_torch(A)(torch.from_numpy(images)).numpy())


def test_other_operators_have_no_convention():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroFilled(pylops.Identity((n, n))).fit().predict(np.fft.fftshift(PHANTOM.real, (-2, -1)))
