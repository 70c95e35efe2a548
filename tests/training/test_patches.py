"""Random patches of images."""

from __future__ import annotations

import torch
from numpy.testing import assert_array_equal

from skinverse.training import random_patches


def test_patches_are_aligned_windows_of_the_image() -> None:
    x = torch.arange(2 * 6 * 8.0).view(2, 1, 6, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(20):
            patches = random_patches(torch.cat([x, x + 1000], 1), 4)
            assert patches.shape == (2, 2, 4, 4)
            assert_array_equal(patches[:, 1] - patches[:, 0], 1000)
            first = patches[:, 0]
            steps = {abs(d) for axis in (-1, -2) for d in first.diff(dim=axis).unique().tolist()}
            assert steps == {1.0, 8.0}


def test_there_are_patches_of_images_that_are_smaller_and_whole_ones() -> None:
    x = torch.arange(2 * 6 * 8.0).view(2, 1, 6, 8)
    with torch.random.fork_rng():
        assert random_patches(x, 100).shape == x.shape
    assert_array_equal(random_patches(x, None), x)
