"""Post-processing: what it starts from, its units, its training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch import Tensor, nn

import skinverse
from skinverse import MLEM, PostProcessor, Tikhonov, TotalVariationRecon, Trainer
from skinverse.datasets import load_photographs, make_problem
from skinverse.metrics import psnr
from skinverse.noise import Poisson

TRAINER = Trainer(max_epochs=30, lr=3e-3, max_grad_norm=1.0, validation_fraction=0.0)


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


@pytest.mark.parametrize(
    ("size", "asked"),
    [((20, 20), (20, 20)), ((5, 9), (8, 12)), ((1, 1), (8, 8)), ((1, 30), (8, 32))],
)
def test_networks_that_ask_for_sizes_get_mirror_images(size: tuple[int, int], asked: tuple[int, int]) -> None:
    X = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    model = PostProcessor(network=Halving(), patch_size=None, trainer=Trainer(max_epochs=1)).fit(X, X)
    x = model.predict(X)
    assert x.shape == X.shape and np.isfinite(x).all()
    larger = np.pad(X, [(0, 0), *((0, n - m) for n, m in zip(asked, size, strict=True))], mode="symmetric")
    normalised = torch.from_numpy((larger[:, None] - model.level_) / model.spread_).float()
    seen = model.module_.network(normalised)[:, 0].detach()
    assert_allclose(x, (model.spread_ * seen + model.level_)[:, : size[0], : size[1]], atol=1e-6)


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


def test_memory_knows_what_it_starts_from(tmp_path: Path) -> None:
    """The same start trains once, however often the operator was used; another one trains anew."""
    images, data, A = make_problem("deblurring", n_samples=6, size=16, random_state=0)

    def fit(lam: float) -> None:
        few = Trainer(max_epochs=1, validation_fraction=0.0)
        start = PostProcessor(initial=Tikhonov(lam=lam), network=Still(), trainer=few, memory=str(tmp_path))
        PostProcessor(A, initial=start, network=Still(), trainer=few, memory=str(tmp_path)).fit(images, data)
        A.matvec(images[0].ravel())

    def n_trainings() -> int:
        return len(list(tmp_path.rglob("*.safetensors")))

    fit(0.02)
    fit(0.02)
    assert n_trainings() == 2  # the start, and what follows it
    fit(0.05)
    assert n_trainings() == 4


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


class Trained(Still):
    """Tells all its copies what they are trained on."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return Trained(self.shapes)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.shapes.append(tuple(x.shape))
        return super().forward(x)


def test_looking_for_a_size_leaves_no_trace() -> None:
    X = np.random.default_rng(0).normal(size=(8, 1, 1)).astype(np.float32)
    shapes: list[tuple[int, ...]] = []
    network = nn.Sequential(Trained(shapes), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    two = Trainer(max_epochs=1, batch_size=4, validation_fraction=0.0)
    model = PostProcessor(network=network, patch_size=None, trainer=two).fit(X, X)
    assert shapes == [(4, 1, 1, 1)] * 2
    assert model.module_.network[2].num_batches_tracked == 2


class Watched(Still):
    """Remembers what it was called with, and keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(tuple(x.shape))
        self.kept = super().forward(x)
        return self.kept


def test_neither_a_look_nor_a_prediction_changes_the_network() -> None:
    X = np.random.default_rng(0).normal(size=(4, 6, 6)).astype(np.float32)
    network = Watched()
    network(torch.ones(1, 1, 2, 2))
    model = PostProcessor(network=network, patch_size=None, trainer=Trainer(max_epochs=1)).fit(X, X)
    assert network.calls == [(1, 1, 2, 2)] and network.kept.requires_grad
    before = str(vars(model.module_)), list(model.module_.network.calls)
    model.predict(X)
    model.predict(np.zeros((2, 5, 9)))
    assert (str(vars(model.module_)), model.module_.network.calls) == before
    model.module_(torch.from_numpy(X[:, None]))  # one call is one call
    assert model.module_.network.calls == [*before[1], (4, 1, 6, 6)]
    assert_array_equal(clone(model).fit(X, X).predict(X), model.predict(X))


def test_a_frozen_start_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, data, A = make_problem("deblurring", n_samples=6, size=16, random_state=0)
    start = Tikhonov(A, lam=0.02).fit()
    few = Trainer(max_epochs=2, validation_fraction=0.0)
    renewed = PostProcessor(A, initial=Tikhonov(lam=0.02), network="dncnn", trainer=few)
    expected = renewed.fit(images, data).predict(data)

    def refuse(*_: Any) -> None:
        raise AssertionError("the start was fitted again")

    monkeypatch.setattr(Tikhonov, "fit", refuse)
    frozen = FrozenEstimator(start)
    model = PostProcessor(A, initial=frozen, network="dncnn", trainer=few).fit(images, data)
    assert model.initial_ is start
    assert_array_equal(model.predict(data), expected)
    assert model.get_params()["initial"] is frozen
    assert_array_equal(clone(model).fit(images, data).predict(data), expected)
    model.save(tmp_path / "model")
    loaded = skinverse.load(tmp_path / "model")
    assert_array_equal(loaded.predict(data), expected)
    assert_array_equal(loaded.fit(images, data).predict(data), expected)


def test_what_is_no_start_is_refused() -> None:
    with pytest.raises(ValueError, match="initial: expected an estimator or None, got 'tv'"):
        PostProcessor(initial="tv").fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


class Killed(BaseException):
    """What ends a process ends a training."""


class KillAfter(Callback):
    """Ends the training after so many epochs, without a word to anybody."""

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        if len(net.history) == self.n_epochs:
            raise Killed


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_a_killed_training_goes_on_to_the_same_weights(held_out: float, tmp_path: Path) -> None:
    images, data = noisy(8, 0)
    parameters: dict[str, Any] = {"initial": Tikhonov(lam=0.1), "network": "dncnn", "patch_size": 8}
    given = {"max_epochs": 4, "lr": 3e-3, "validation_fraction": held_out}
    whole = PostProcessor(**parameters, trainer=Trainer(**given)).fit(images, data)
    given["checkpoint"] = tmp_path / "training"
    with pytest.raises(Killed):
        PostProcessor(**parameters, trainer=Trainer(**given, callbacks=[KillAfter(2)])).fit(images, data)
    resumed = PostProcessor(**parameters, trainer=Trainer(**given)).fit(images, data)
    weights = resumed.module_.state_dict()
    for name, weight in whole.module_.state_dict().items():
        assert_array_equal(weights[name], weight)
    assert [epoch["train_loss"] for epoch in resumed.history_] == [
        epoch["train_loss"] for epoch in whole.history_
    ]


def test_what_it_starts_from_knows_the_noise_of_what_is_measured() -> None:
    images, data, A = make_problem("deblurring", n_samples=4, size=8, random_state=0)
    counts = np.random.default_rng(0).poisson(50 * np.abs(data)).astype(float)
    masked = np.ma.array(counts, mask=np.random.default_rng(1).random(counts.shape) < 0.1)
    found = [
        PostProcessor(
            A,
            initial=MLEM(noise=Poisson(background=background), max_steps=3),
            trainer=Trainer(max_epochs=1),
            random_state=0,
        )
        .fit(50 * images, counts)
        .predict(masked)
        for background in (2.0, np.full(A.dimsd, 2.0))
    ]
    assert_allclose(found[1], found[0], rtol=1e-6)
