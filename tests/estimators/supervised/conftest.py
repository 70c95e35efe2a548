"""What all of these tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """Networks that a test makes itself draw their weights here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
