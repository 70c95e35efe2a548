"""Reconstruction methods: (images, data) -> fitted; data -> image.

The methods themselves are listed once, in ``skinverse/__init__.pyi``. Here is what a new method is made of.
"""

from skinverse._parameters import (
    Bounds,
    Constraint,
    Elements,
    Flag,
    Instance,
    Integer,
    Null,
    OneOf,
    ParameterError,
    Real,
    fitted,
    parameter,
)
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._learned import LearnedReconstructor

__all__ = [
    "BaseReconstructor",
    "Bounds",
    "Constraint",
    "Elements",
    "Flag",
    "Instance",
    "Integer",
    "LearnedReconstructor",
    "Null",
    "OneOf",
    "ParameterError",
    "Real",
    "fitted",
    "parameter",
]
