"""Reconstruction methods: (images, data) -> fitted; data -> image.

The methods themselves are listed once, in ``skinverse/__init__.pyi``.
"""

from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor

__all__ = ["BaseReconstructor", "LearnedReconstructor"]
