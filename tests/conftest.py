"""What every test can rely on: one thread, no screen, repeatable examples, untouched global generators."""

from __future__ import annotations

import os

# Importing matplotlib for its backend would cost every test run a second; the variable costs nothing.
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, max_examples=30, print_blob=False
)
hypothesis.settings.load_profile("repeatable")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def global_generators_stay_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing in the package may draw from, or seed, the generators that belong to the user."""
    before = _global_states()
    yield
    if request.node.get_closest_marker("draws_globally") is None:
        assert before == _global_states(), "the test changed the global NumPy or torch generator"


def _global_states() -> tuple[bytes, int, bytes]:
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002
    return keys.tobytes(), position, torch.get_rng_state().numpy().tobytes()
