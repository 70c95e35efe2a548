"""Which axes of an image are space and which one holds channels, in methods that learn."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose

import skinverse
from skinverse import (
    LISTA,
    AdversarialRegularizer,
    BilevelRegularizer,
    DeepEquilibriumRecon,
    DirectInversion,
    GenerativeCovariancePrior,
    LearnedGradientDescent,
    LearnedPrimalDual,
    ModelAdaptation,
    PostProcessor,
    TotalVariationRecon,
    Trainer,
    VariationalNetwork,
)
from skinverse.estimators.unrolled.base import DataSpace
from skinverse.operators import as_torch

BRIEF = Trainer(n_steps=3, batch_size=2, validation_fraction=0.0)
LOCAL = {
    LearnedGradientDescent: {"n_iterations": 1},
    LearnedPrimalDual: {"n_iterations": 1},
    VariationalNetwork: {"n_iterations": 1, "n_filters": 4, "kernel_size": 3},
    LISTA: {"n_iterations": 1, "kernel_size": 3},
    PostProcessor: {},
    DeepEquilibriumRecon: {"pretrainer": BRIEF, "max_steps": 3, "backward": "unroll"},
    AdversarialRegularizer: {"lam": 0.1, "max_steps": 5},
    BilevelRegularizer: {"pretrainer": BRIEF, "lam": 0.1, "max_steps": 5},
}
every = pytest.mark.parametrize("method", LOCAL)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).cumsum(1).astype(np.float32)


def fitted(method: Any, x: np.ndarray, **params: Any) -> Any:
    return method(trainer=BRIEF, **LOCAL[method], **params).fit(x, x + np.float32(0.1))


@every
def test_slices_of_a_volume_see_one_another_and_those_of_a_batch_do_not(method: Any) -> None:
    x = images(2, 4, 6, 5)
    changed = x.copy()
    changed[:, 0] += images(2, 6, 5)
    volumes, slices = fitted(method, x), fitted(method, x.reshape(8, 6, 5))
    assert volumes.n_axes_ == 3 and slices.n_axes_ == 2
    assert np.abs(volumes.predict(changed) - volumes.predict(x))[:, 1].max() > 1e-5
    apart = slices.predict(changed.reshape(8, 6, 5)) - slices.predict(x.reshape(8, 6, 5))
    assert not apart.reshape(2, 4, 6, 5)[:, 1:].any()


@every
def test_channels_may_move_after_the_training(method: Any, tmp_path: Any) -> None:
    x = images(2, 3, 6, 5)
    model = fitted(method, x, channel_axis=0)
    assert model.n_axes_ == 2
    moved = copy.copy(model).set_params(channel_axis=-1).predict(np.moveaxis(x, 1, -1))
    assert_allclose(np.moveaxis(moved, -1, 1), model.predict(x), atol=1e-5)
    with pytest.raises(ValueError, match="trained on images of 2 spatial axes, got 3.*channel_axis"):
        copy.copy(model).set_params(channel_axis=None).predict(x)


@pytest.mark.parametrize("method", [DeepEquilibriumRecon, BilevelRegularizer])
def test_noise_that_is_drawn_for_channels_does_not_depend_on_their_place(method: Any) -> None:
    x = images(2, 3, 6, 5)
    first = fitted(method, x, channel_axis=0, patch_size=None)
    last = fitted(method, np.moveaxis(x, 1, -1), channel_axis=-1, patch_size=None)
    # The losses, since Adam's first steps have the length of the rate wherever a gradient is not zero.
    losses = [[epoch["train_loss"] for epoch in model.history_] for model in (first, last)]
    # Rounding makes 2e-6 on one processor and 6e-5 on another, other noise more than 0.01.
    assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize(("shape", "axis"), [((2, 4, 6, 5), None), ((2, 6, 5, 3), -1), ((2, 3, 4, 5, 2), 3)])
@pytest.mark.parametrize("method", [LISTA, PostProcessor, BilevelRegularizer])
def test_files_keep_volumes_and_channels(method: Any, shape: Any, axis: int | None, tmp_path: Any) -> None:
    x = images(*shape)
    model = fitted(method, x, channel_axis=axis)
    model.save(tmp_path / "model.skinverse")
    again = skinverse.load(tmp_path / "model.skinverse")
    assert again.channel_axis == axis
    assert_allclose(again.predict(x), model.predict(x))


def test_what_is_made_for_planes_refuses_volumes() -> None:
    x = images(4, 4, 6, 5)
    says = "at most 2 spatial axes, got 3 in images of shape .*channel_axis says"
    with pytest.raises(ValueError, match=says):
        GenerativeCovariancePrior(n_latent=2, trainer=BRIEF).fit(x)
    with pytest.raises(
        ValueError, match="'lipschitz' is a network of images of 2 spatial axes.*channel_axis"
    ):
        AdversarialRegularizer(energy="lipschitz", trainer=BRIEF).fit(x, x)
    with pytest.raises(ValueError, match="at most 3 spatial axes, got 4.*channel_axis says"):
        PostProcessor(trainer=BRIEF).fit(x[None], x[None])


def test_the_initial_method_has_the_channels_of_the_images() -> None:
    x = images(2, 6, 5, 3)
    model = PostProcessor(initial=TotalVariationRecon(lam=0.1), channel_axis=-1, trainer=BRIEF).fit(x, x)
    assert model.initial_.channel_axis == -1


def test_direct_inversion_gives_volumes_and_colours() -> None:
    x = images(6, 2, 4, 3)
    data = x.reshape(6, -1)[:, :20]
    for axis, shape in ((None, (1, 2, 4, 3)), (0, (2, 4, 3)), (-1, (3, 2, 4))):
        model = DirectInversion(channel_axis=axis, trainer=BRIEF).fit(x, data)
        assert model.image_shape_ == shape
        assert model.predict(data).shape == x.shape


def test_a_prior_of_colours_has_them_where_the_images_have_them() -> None:
    x = images(8, 3, 6, 6)
    priors = [
        GenerativeCovariancePrior(n_latent=2, noise=0.1, channel_axis=axis, trainer=BRIEF).fit(z)
        for axis, z in ((0, x), (-1, np.moveaxis(x, 1, -1)))
    ]
    first, last = (prior.sample(2, random_state=0) for prior in priors)
    assert_allclose(np.moveaxis(last, -1, 1), first, atol=1e-5)


def test_an_adaptation_has_the_channels_of_its_method() -> None:
    x = images(2, 6, 5, 3)
    model = LearnedGradientDescent(
        pylops.Identity(x.shape[1:]), channel_axis=-1, n_iterations=1, trainer=BRIEF
    )
    model.fit(x, x)
    adapted = ModelAdaptation(estimator=model, max_steps=1).fit(Y_meas=x)
    assert adapted.predict(x).shape == x.shape
    with pytest.raises(
        ValueError, match="channel_axis: expected None or that of the adapted method, -1, got 0"
    ):
        ModelAdaptation(estimator=model, channel_axis=0).fit(Y_meas=x)


@pytest.mark.parametrize(
    ("dims", "channel_axis", "dimsd", "channels"),
    [
        ((6, 5), None, (4, 7), (1, 4, 7)),
        ((6, 5), None, (9,), (1, 1, 9)),
        ((6, 5), None, (3, 4, 7), (3, 4, 7)),
        ((6, 5), None, (2, 3, 4, 7), (6, 4, 7)),
        ((4, 6, 5), None, (3, 8, 7), (1, 3, 8, 7)),
        ((4, 6, 5), None, (8, 7), (1, 1, 8, 7)),
        ((6, 5, 3), -1, (4, 7, 3), (3, 4, 7)),
        ((6, 5, 3), -1, (9, 4, 7), (9, 4, 7)),
        ((3, 6, 5), 0, (3, 4, 7), (3, 4, 7)),
        ((8,), None, (4, 7), (1, 4, 7)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_data_have_as_many_axes_in_space_as_images(
    dims: Any, channel_axis: int | None, dimsd: Any, channels: Any, dtype: torch.dtype
) -> None:
    space = DataSpace.of(as_torch(pylops.Zero(dimsd, dims)), channel_axis)
    y = torch.randn(2, *dimsd, dtype=dtype, generator=torch.Generator().manual_seed(0))
    planes = space.channels(y)
    parts = 2 if y.is_complex() else 1
    assert planes.shape == (2, parts * channels[0], *channels[1:])
    assert torch.equal(space.data(planes, y), y)
