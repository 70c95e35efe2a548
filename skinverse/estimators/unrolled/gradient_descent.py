"""Learned gradient descent: a network makes an update of the gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._differences import negative_laplacian
from skinverse._parameters import Flag, Integer, parameter
from skinverse.estimators.unrolled.base import ScaledProblem, Unrolled, UnrolledReconstructor
from skinverse.estimators.unrolled.updates import Update


class LearnedGradientDescent(UnrolledReconstructor):
    """Learned gradient descent: a network makes the update of each iteration of the gradients.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||x_N(y) - x||^2`` over pairs, where ``x_0`` is the
    analytic inverse of ``y`` and

    ``(x, s) <- (x, 0) + U(x, A^*(A x - y), -Laplacian x, s)``

    with a network ``U``. What it makes of the states ``s`` is set to zero where it is negative.

    See Also
    --------
    LearnedPrimalDual : Learns in the space of the data too.

    Notes
    -----
    The method's own training has 2000 steps of 8 images; the learning rate falls from 1e-3 to 1e-4, and
    gradients are shortened to norm 1.

    What is learned is the map of normalised images, ``(x - level_) / spread_``, from ``(y - A level_) /
    spread_``. Trained on images and data times a number, or with a constant added to the images and ``A`` of
    it to the data, it gives the same reconstructions times it, or with it added. Images of another unit or
    level than those of the training need another training: the network is neither homogeneous nor does it
    keep constants.

    Under counts ``A`` is ``W^1/2 A`` and ``y`` is ``W^1/2 y``, with weights that ``noise`` describes.

    References
    ----------
    J. Adler and O. Oktem, Solving ill-posed inverse problems using iterative deep neural networks, Inverse
    Problems 33, 2017.

    Examples
    --------
    >>> from skinverse import LearnedGradientDescent, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedGradientDescent(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> [x.shape for x in method.staged_predict(data)]
    [(8, 16, 16), (8, 16, 16), (8, 16, 16)]
    """

    not_promised = {
        "phase": (
            "The network sees real and imaginary parts as two channels: the image changes by 0.05 relative."
        ),
    }

    n_features: int = parameter(
        default=32, allowed=Integer(ge=1), doc="Number of channels in the inner layers of the network."
    )
    n_states: int = parameter(
        default=5,
        allowed=Integer(ge=1),
        doc="Number of channels ``s`` that an iteration hands to the next one beside the image.",
    )
    shared: bool = parameter(
        default=True, allowed=Flag(), doc="Whether all iterations have the same weights."
    )

    def _make_module(self) -> Unrolled:
        return GradientUnrolled(
            self.n_channels_,
            self.n_iterations,
            self.n_features,
            self.n_states,
            shared=self.shared,
            n_axes=self.n_axes_,
        )


class GradientUnrolled(Unrolled):
    """``(x, s) <- (x, 0) + U(x, A^*(A x - y), -Laplacian x, s)`` with states ``s >= 0``."""

    def __init__(
        self,
        n_channels: tuple[int, int],
        n_iterations: int,
        n_features: int,
        n_states: int,
        *,
        shared: bool,
        n_axes: int = 2,
    ) -> None:
        super().__init__(n_channels, n_iterations)
        c = n_channels[0]
        self.n_states = n_states
        self.updates = nn.ModuleList(
            Update(3 * c + n_states, c + n_states, n_features, (3,) * n_axes)
            for _ in range(1 if shared else n_iterations)
        )

    def iterates(self, problem: ScaledProblem) -> Iterator[Tensor]:
        """Yield the images after each iteration."""
        x, c = problem.start, self.n_channels[0]
        s, axes = x.new_zeros(len(x), self.n_states, *x.shape[2:]), tuple(range(2 - x.ndim, 0))
        for k in range(self.n_iterations):
            U = self.updates[k % len(self.updates)]
            update = U(torch.cat([x, problem.gradient(x), negative_laplacian(x, axes), s], 1))
            x, s = x + update[:, :c], F.relu(update[:, c:])
            yield x
