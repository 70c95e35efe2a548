"""What checks compare, and how they say what was found instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# Characters of an error that is a sentence and not a printed array.
_LONGEST = 500


def expect(holds: bool, otherwise: str) -> None:
    """Raise an AssertionError with a text, unless something holds; ``assert`` is silent under ``-O``."""
    if not holds:
        raise AssertionError(otherwise)


def as_array(images: Any) -> np.ndarray:
    """Reconstructions as a NumPy array."""
    return images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)


def relative_difference(found: Any, expected: Any) -> float:
    """Largest ``||x - x_0|| / ||x_0||`` of any image; infinite where the shapes differ."""
    x, x0 = as_array(found), as_array(expected)
    if x.shape != x0.shape:
        return np.inf
    difference, size = (np.linalg.norm(v.reshape(len(v), -1), axis=1) for v in (x - x0, x0))
    with np.errstate(divide="ignore", invalid="ignore"):  # an image of zeros
        return float(np.max(np.where(difference == 0, 0.0, difference / size)))


def expect_close(found: Any, expected: Any, tol: float, otherwise: str) -> None:
    """Compare reconstructions; ``otherwise`` has a place ``{}`` for the figure."""
    change = relative_difference(found, expected)
    expect(change <= tol, f"{otherwise.format(f'{change:.1e} relative')}, more than {tol:.0e}")


def expect_identical(found: Any, expected: Any, otherwise: str) -> None:
    """Compare reconstructions bit by bit; ``otherwise`` has a place ``{}`` for the figure."""
    x, x0 = as_array(found), as_array(expected)
    same = x.dtype == x0.dtype and np.array_equal(x, x0, equal_nan=x.dtype.kind in "fc")
    expect(same, f"{otherwise.format(f'{relative_difference(x, x0):.1e} relative')}, not by nothing at all")


def expect_refusal(
    call: Callable[[], Any], what: str, *, naming: str, kinds: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """Expect one sentence that names a thing, in an error of some kind."""
    try:
        call()
    except kinds as error:
        text = str(error)
        expect(naming in text, f"{what} is refused without naming {naming}: {text[:_LONGEST]!r}")
        expect(
            0 < len(text.strip()) <= _LONGEST and "\n" not in text,
            f"{what} is refused in something else than one sentence: {text[:_LONGEST]!r}",
        )
    except Exception as error:
        raise AssertionError(f"{what} ends in {type(error).__name__}: {str(error)[:_LONGEST]}") from error
    else:
        raise AssertionError(f"{what} is accepted")
