"""Post-processing: what it starts from, its units, its training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skinverse import PostProcessor, Tikhonov, TotalVariationRecon, Trainer
from skinverse.datasets import load_photographs, make_problem
from skinverse.metrics import psnr

TRAINER = Trainer(max_epochs=30, lr=3e-3, max_norm=1.0, validation_fraction=0.0)


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """Networks that a test makes itself draw their weights here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


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


class Halving(nn.Module):
    """A U-Net as people write them: sides must be divisible by four and hold eight pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 3, padding="same", padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(nn.functional.avg_pool2d(x, 2), 2)
        if min(small.shape[-2:]) < 2:
            raise RuntimeError("kernel is larger than the image")
        return x - self.mix(nn.functional.interpolate(small, scale_factor=4.0))


@pytest.mark.parametrize("size", [(20, 20), (5, 9), (1, 1), (1, 30)])
def test_networks_that_ask_for_sizes_get_them(size: tuple[int, int]) -> None:
    X = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    model = PostProcessor(network=Halving(), patch_size=None, trainer=Trainer(max_epochs=1)).fit(X, X)
    x = model.predict(X)
    assert x.shape == X.shape and np.isfinite(x).all()
    if size == (20, 20):  # nothing is continued where nothing has to be
        unit = float(model.module_.unit)
        seen = model.module_.network(torch.from_numpy(X[:, None] / unit))[:, 0] * unit
        assert_allclose(x, seen.detach(), atol=1e-6)


def test_a_network_that_changes_sizes_is_refused() -> None:
    X = np.zeros((2, 20, 20), np.float32)
    with pytest.raises(ValueError, match=r"network: expected a module .* the same shape"):
        PostProcessor(network=nn.Conv2d(1, 1, 3), patch_size=None).fit(X, X)


@pytest.mark.parametrize("network", ["unet", "dncnn"])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_a_diverging_training_is_told_not_raised(network: str, held_out: float) -> None:
    X = np.random.default_rng(0).normal(size=(6, 8, 8))
    trainer = Trainer(max_epochs=4, lr=1e10, validation_fraction=held_out)
    with pytest.warns(ConvergenceWarning, match="last good weights are kept"):
        model = PostProcessor(network=network, trainer=trainer).fit(X, X)
    assert np.isfinite(model.predict(X)).all()


def test_memory_knows_what_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same start trains once, however often the operator was used; another one trains anew."""
    images, data, A = make_problem("deblurring", n_samples=6, size=16, random_state=0)
    trained, train = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda *a, **k: trained.append(1) or train(*a, **k))

    def fit(lam: float) -> None:
        few = Trainer(max_epochs=1, validation_fraction=0.0)
        start = PostProcessor(initial=Tikhonov(lam=lam), network=Still(), trainer=few, memory=str(tmp_path))
        PostProcessor(A, initial=start, network=Still(), trainer=few, memory=str(tmp_path)).fit(images, data)
        A.matvec(images[0].ravel())

    fit(0.02)
    fit(0.02)
    assert len(trained) == 2  # the start, and what follows it
    fit(0.05)
    assert len(trained) == 4


def test_real_and_complex_do_not_denoise_each_other() -> None:
    X = np.zeros((2, 4, 4))
    with pytest.raises(ValueError, match="images and measurements of one kind, got real X_true and complex"):
        PostProcessor().fit(X, X.astype(complex))


def test_who_has_no_pairs_is_told_what_learns_without() -> None:
    X = np.zeros((3, 4, 4))
    for given in ((X, X[:2]), (X, None)):
        with pytest.raises(ValueError, match="AdversarialRegularizer .*GenerativeCovariancePrior"):
            PostProcessor().fit(*given)


def test_a_start_that_has_not_converged_is_told() -> None:
    images, data, A = make_problem("deblurring", n_samples=4, size=16, random_state=0)
    initial = TotalVariationRecon(lam=0.01, max_steps=1)
    few = Trainer(max_epochs=1, validation_fraction=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = PostProcessor(A, initial=initial, network=Still(), trainer=few).fit(images, data)
    with pytest.warns(ConvergenceWarning, match="PostProcessor: 4 of 4"):
        assert not model.predict(data, return_info=True)[1].converged.any()


def test_looking_for_a_size_leaves_no_trace() -> None:
    X = np.random.default_rng(0).normal(size=(8, 1, 1)).astype(np.float32)
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    two = Trainer(max_epochs=1, batch_size=4, validation_fraction=0.0)
    model = PostProcessor(network=network, patch_size=None, trainer=two).fit(X, X)
    assert model.module_.network[1].num_batches_tracked == 2
