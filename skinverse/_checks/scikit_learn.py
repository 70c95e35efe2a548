"""Promises on scikit-learn's tools: scores, searches, and the same method in scikit-learn's order."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skinverse._checks._expect import expect, expect_close, expect_identical
from skinverse._checks._promise import promise
from skinverse._checks._subject import Subject
from skinverse.metrics import psnr

# Values to search over, of the first of these parameters that an estimator has.
_SEARCHED: dict[str, list[Any]] = {
    "lam": [1e-3, 10.0],
    "max_steps": [1, 30],
    "n_iterations": [1, 2],
    "patch_size": [4, 8],
    "filter": ["ramp", "hann"],
}


@promise()
def score_is_psnr(subject: Subject) -> None:
    """``score`` is the mean peak signal-to-noise ratio in dB, also of flat images."""
    _, images, data = subject.problem
    expected = float(np.mean(psnr(images, subject.reconstruction)))
    for name, truth in {"images": images, "flat images": images.reshape(len(images), -1)}.items():
        found = subject.fitted.score(truth, data)
        expect(
            isinstance(found, float) and bool(np.isclose(found, expected, rtol=1e-9)),
            f"the score of {name} is {found!r}, and the mean PSNR {expected:.3f} dB",
        )


@promise()
def grid_search(subject: Subject) -> None:
    """``GridSearchCV`` searches over parameters and takes those of the largest score."""
    operator, images, data = subject.problem
    known = [(name, values) for name, values in _SEARCHED.items() if subject.has(name)]
    name, values = known[0] if known else ("operator", [operator, -1 * operator])
    folds = [(np.arange(len(data) - 2), np.arange(len(data) - 2, len(data)))]
    search = GridSearchCV(subject.new(), {name: values}, cv=folds, error_score="raise").fit(images, data)
    scores, best = search.cv_results_["mean_test_score"], search.best_params_
    by_hand = subject.new().set_params(**best).fit(images[:-2], data[:-2]).score(images[-2:], data[-2:])
    expect(
        np.isclose(search.best_score_, by_hand),
        f"the search finds a score of {search.best_score_} and by hand {by_hand}",
    )
    expect(search.best_score_ == max(scores), f"of the scores {scores} the search takes {search.best_score_}")
    shape = search.predict(data).shape
    expect(shape == images.shape, f"the search predicts images of shape {shape}")


@promise()
def regressor(subject: Subject) -> None:
    """``as_regressor()`` has scikit-learn's order, takes flat arrays and images, and stays fitted."""
    _, images, data = subject.problem
    flat, rows = (a.reshape(len(a), -1) for a in (images, data))
    expected = subject.reconstruction.reshape(flat.shape)
    of_fitted = subject.fitted.as_regressor()
    expect_identical(
        of_fitted.predict(data), subject.reconstruction, "as_regressor of what is fitted differs by {}"
    )
    fitted = subject.new().as_regressor().fit(rows, flat)
    found = fitted.predict(rows)
    expect(found.shape == flat.shape, f"flat arrays become images of shape {found.shape}")
    expect_close(found, expected, 1e-6, "as_regressor().fit(Y_meas, X_true) differs by {}")
    shaped = clone(fitted).fit(data, images).predict(data)
    expect(
        shaped.shape == images.shape, f"images of shape {images.shape} are predicted in shape {shaped.shape}"
    )
    expect_close(shaped, subject.reconstruction, 1e-6, "as_regressor() of images differs by {}")
