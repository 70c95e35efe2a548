"""Promises on images that were measured each in its own way."""

from __future__ import annotations

import numpy as np
import pylops

from skinverse._checks._expect import expect, expect_close, expect_identical
from skinverse._checks._promise import promise
from skinverse._checks._subject import Subject
from skinverse._measurements import Measurements

# What rounding does to a reconstruction when it is computed in other company.
_ROUNDING = 1e-6


@promise()
def measurements(subject: Subject) -> None:
    """``Measurements`` of which nothing more is known than the data are the data, also some of them."""
    images, data = subject.problem[1:]
    measured = Measurements(data)
    expect_identical(
        subject.fitted.predict(measured), subject.reconstruction, "Measurements change the result by {}"
    )
    some = subject.fitted.predict(measured[np.array([2, 0])])
    expect_close(some, subject.reconstruction[[2, 0]], _ROUNDING, "some of them change the result by {}")
    score, expected = subject.fitted.score(images, measured), subject.fitted.score(images, data)
    expect(score == expected, f"Measurements change the score from {expected} to {score}")


@promise()
def operator_of_each_image(subject: Subject) -> None:
    """Images with operators of their own are reconstructed as one by one, or this is refused."""
    operator, _, data = subject.problem
    gains = np.linspace(0.5, 2.0, len(data))[:, None] * np.ones(operator.shape[0])
    scaled = data.reshape(len(data), -1) * gains
    members = [pylops.Diagonal(gain, dtype=operator.dtype) @ operator for gain in gains]
    model = subject.copy(operator=members[0])
    try:
        found = model.predict(Measurements(scaled, diag=gains))
    except ValueError as error:
        expect("operator" in str(error), f"operators of each image end in: {error}")
        return
    alone = [subject.copy(operator=A).predict(y[None]) for A, y in zip(members, scaled, strict=True)]
    expect_close(found, np.concatenate(alone), _ROUNDING, "operators of each image change it by {}")
