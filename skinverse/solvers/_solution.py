"""What a solver returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from skinverse._tensors import are_finite


@dataclass(frozen=True)
class Solution:
    """The images that a solver found and, for each of them, how it ended.

    Parameters
    ----------
    x : Tensor of shape (n, *dims)
        Images.
    n_steps : Tensor of shape (n,), int64
        Number of steps taken until the image stopped.
    converged : Tensor of shape (n,), bool
        Whether the image stopped because it reached the tolerance.
    residual : Tensor of shape (n,)
        Number that was compared with ``tol`` last.
    objective : Tensor of shape (n,)
        Value of the objective at the images; NaN where nothing is minimised.
    extra : dict of Tensor of shape (n,)
        Further numbers that a method reports of each image.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import Solution
    >>> Solution.direct(torch.ones(2, 3)).converged
    tensor([True, True])
    """

    x: Tensor
    n_steps: Tensor
    converged: Tensor
    residual: Tensor
    objective: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def direct(cls, x: Tensor, *, extra: dict[str, Tensor] | None = None) -> Self:
        """The solution of a method that does not iterate: no steps, converged, no residual."""
        number = torch.zeros(len(x), dtype=x.dtype.to_real(), device=x.device)
        steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(
            x, steps, torch.ones_like(steps, dtype=torch.bool), number, number * torch.nan, extra or {}
        )

    def finite(self) -> Self:
        """The same solution, in which no image that holds NaN or inf counts as converged."""
        return replace(self, converged=self.converged & are_finite(self.x))

    @classmethod
    def concatenate(cls, parts: Sequence[Solution]) -> Solution:
        """One solution of the images of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        names = [f.name for f in fields(cls) if f.name != "extra"]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**joined, extra={k: torch.cat([part.extra[k] for part in parts]) for k in parts[0].extra})

    @classmethod
    def gather(cls, n: int, parts: Iterable[tuple[Any, Solution]], device: torch.device) -> Solution:
        """One solution of ``n`` images of solutions of some of them, which are made one after the other.

        Parameters
        ----------
        n : int
            Number of images.
        parts : iterable of (index, Solution)
            Each image is in one of them; a part may be freed before the next one is made.
        device : torch.device
            Where the whole is put together.

        Returns
        -------
        Solution
            The solution of all images, which shares memory with none of its parts.
        """
        names = [f.name for f in fields(cls) if f.name != "extra"]
        whole: dict[str, Tensor] = {}
        for index, part in parts:
            for name, value in ({name: getattr(part, name) for name in names} | part.extra).items():
                if name not in whole:
                    whole[name] = value.new_empty((n, *value.shape[1:]), device=device)
                whole[name][index] = value.to(device)
        found = {name: whole.pop(name) for name in names}
        return cls(**found, extra=whole)
