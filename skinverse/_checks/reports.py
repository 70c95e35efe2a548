"""Promises on what is reported: an image that is called converged is one, and numbers are numbers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skinverse._checks._expect import expect
from skinverse._checks._promise import promise
from skinverse._checks._subject import Array, Subject

# Two tolerances, and how far apart their images may be, relative to the images: measured is 1 % at most,
# where a tolerance is that of a change per step and many small steps are ahead.
_LOOSE, _TIGHT, _APART = 1e-4, 1e-6, 3e-2
_MOST_STEPS = 20000


@promise(made_by=lambda subject: subject.has("tol"))
def converged_is_true(subject: Subject) -> None:
    """What is called converged at a tolerance of 1e-4 moves by less than 3 % when it is solved to 1e-6."""
    loosely, tightly = (_solved(subject, tol) for tol in (_LOOSE, _TIGHT))
    converged = np.asarray(loosely[1].converged)
    loose, tight = (x.reshape(len(x), -1)[converged] for x, _ in (loosely, tightly))
    moved = np.linalg.norm(loose - tight, axis=1) / np.linalg.norm(tight, axis=1)
    expect(
        bool((moved <= _APART).all()),
        f"images that are called converged at tol={_LOOSE:g} move by {moved.max(initial=0):.1e} relative "
        f"when solved to {_TIGHT:g}, more than {_APART:.0e}",
    )


def _solved(subject: Subject, tol: float) -> tuple[Array, Any]:
    """Reconstructions to a tolerance, and how they ended."""
    how = subject.those_of(tol=tol, max_steps=_MOST_STEPS)
    model = copy.copy(subject.compared).set_params(**how)
    found: tuple[Array, Any] = model.predict(subject.compared_problem.data, return_info=True)
    return found


@promise(made_by=lambda subject: subject.has("trainer"))
def weights_that_are_not_numbers(subject: Subject) -> None:
    """With weights that are NaN no image is called converged, and ``predict`` warns or refuses."""
    model = copy.copy(subject.fitted)
    for name, value in vars(model).items():
        if isinstance(value, torch.nn.Module):
            setattr(model, name, _spoiled(value))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            _, info = model.predict(subject.problem.data, return_info=True)
        except ValueError:
            return
    expect(not np.any(info.converged), f"{int(np.sum(info.converged))} images are called converged")
    expect(
        any(issubclass(warning.category, ConvergenceWarning) for warning in told),
        "nothing is said of weights that are NaN",
    )


def _spoiled(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with NaN for all parameters."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for weights in module.parameters():
            weights.fill_(torch.nan)
    return module
