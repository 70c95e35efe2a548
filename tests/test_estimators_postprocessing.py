"""Post-processing: what it starts from, its units, its training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from skinverse import PostProcessor, Tikhonov, Trainer
from skinverse.datasets import load_photographs, make_problem
from skinverse.metrics import psnr

TRAINER = Trainer(max_epochs=30, lr=3e-3, max_norm=1.0, validation_fraction=0.0)


class Still(nn.Module):
    """Leaves its input alone, whatever it is taught."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.nothing


def noisy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images = load_photographs(24, n_patches=n, random_state=seed)
    noise = 0.15 * np.random.default_rng(seed).normal(size=images.shape)
    return images, (images + noise).astype(np.float32)


def test_without_an_operator_it_is_a_supervised_denoiser() -> None:
    images, data = noisy(24, 0)
    model = PostProcessor(network="dncnn", patch_size=16, trainer=TRAINER).fit(images, data)
    X, Y = noisy(6, 1)
    assert psnr(X, model.predict(Y)).mean() > psnr(X, Y).mean() + 3


def test_what_it_starts_from_gets_the_operator_and_is_left_untouched() -> None:
    images, data, A = make_problem("deblurring", n_samples=6, size=16, random_state=0)
    initial = Tikhonov(lam=0.02)
    model = PostProcessor(A, initial=initial, network=Still(), trainer=TRAINER).fit(images, data)
    expected = Tikhonov(A, lam=0.02).fit().predict(data)
    assert_allclose(model.predict(data), expected, atol=1e-6)
    assert initial.operator is None and not hasattr(initial, "operator_")
    assert model.initial_.operator is A


def test_the_unit_of_the_images_plays_no_part() -> None:
    images, data = noisy(8, 0)
    few = Trainer(max_epochs=2, validation_fraction=0.0)
    plain = PostProcessor(network="dncnn", trainer=few).fit(images, data).predict(data)
    large = PostProcessor(network="dncnn", trainer=few).fit(1000 * images, 1000 * data).predict(1000 * data)
    assert_allclose(large / 1000, plain, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_images_smaller_than_the_network_are_taken(size: int) -> None:
    X = np.random.default_rng(0).normal(size=(3, size, size))
    model = PostProcessor(trainer=Trainer(max_epochs=1)).fit(X, X)
    assert np.isfinite(model.predict(X)).all()


def test_unknown_networks_are_named() -> None:
    with pytest.raises(ValueError, match="network.*'unet'.*'vgg'"):
        PostProcessor(network="vgg").fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))
