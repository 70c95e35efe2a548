"""Learned primal-dual: networks update images and data in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from skinverse._parameters import Elements, Flag, Integer, fitted, parameter
from skinverse.estimators._problems import Problems
from skinverse.estimators.unrolled.base import DataSpace, ScaledProblem, Unrolled, UnrolledReconstructor
from skinverse.estimators.unrolled.updates import Update
from skinverse.operators import LinearMap


class LearnedPrimalDual(UnrolledReconstructor):
    """Learned primal-dual: networks between the products with the operator and its adjoint.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||f_N(y) - x||^2`` over pairs, where several images
    ``f`` and several data ``h`` are updated in turn, in each iteration by networks of its own,

    ``h <- h + D_k(h, A f_1, y)``, ``f <- f + P_k(f, A^* h_0)``,

    and the first of the images is the reconstruction. ``f`` starts with what ``initial`` makes of ``y`` (with
    zero in the paper), ``h`` with zero.

    The networks ``D_k`` see the next data along each axis that has neighbours, of as many of the last ones as
    images have: axes of images, of sinograms, of Fourier transforms on the full grid. Along others they see
    each datum on its own; axes before them, such as coils, are channels.
    Samples of a transform and pixels that are left are a list, ``(samples,)`` or ``(coils, samples)``, whose
    networks are pointwise. Of an operator that skinverse does not know, several axes of ``dimsd`` are taken
    for a grid, a single one for a list.

    See Also
    --------
    LearnedGradientDescent : Learns in the space of the images alone.

    Notes
    -----
    Where the networks on the data see the neighbours of each datum, one that was trained on data in another
    order is another method, unlike other methods.

    The method's own training has 2000 steps of 8 images; the learning rate falls from 1e-3 to 1e-4, and
    gradients are shortened to norm 1.

    What is learned is the map of normalised images, ``(x - level_) / spread_``, from ``(y - A level_) /
    spread_``. Trained on images and data times a number, or with a constant added to the images and ``A`` of
    it to the data, it gives the same reconstructions times it, or with it added. Images of another unit or
    level than those of the training need another training: the networks are neither homogeneous nor do they
    keep constants.

    Under counts ``A`` is ``W^1/2 A`` and ``y`` is ``W^1/2 y``, with weights that ``noise`` describes. The
    networks ``D_k`` then see data that are all equally noisy.

    References
    ----------
    J. Adler and O. Oktem, Learned primal-dual reconstruction, IEEE Transactions on Medical Imaging 37, 2018.

    Examples
    --------
    >>> from skinverse import LearnedPrimalDual, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedPrimalDual(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> [x.shape for x in method.staged_predict(data)]
    [(8, 16, 16), (8, 16, 16), (8, 16, 16)]
    """

    not_promised = {
        "other_sizes": (
            "Networks that see neighbours among the data take data that have them: a list of samples is "
            "refused."
        ),
        "phase": (
            "The networks see real and imaginary parts as two channels: the image changes by 0.03 relative."
        ),
    }

    # The networks see the data, each measurement in its place.
    _complete: ClassVar[bool] = True

    n_features: int = parameter(
        default=32, allowed=Integer(ge=1), doc="Number of channels in the inner layers of the networks."
    )
    n_states: int = parameter(
        default=5,
        allowed=Integer(ge=1),
        doc="Number of images ``f``, and of data ``h``, that are updated.",
    )
    shared: bool = parameter(
        default=False, allowed=Flag(), doc="Whether all iterations have the same weights."
    )

    neighbours_: tuple[bool, ...] = fitted(
        kind="tuple of bool",
        allowed=Elements(Flag(), name="booleans"),
        doc="Whether the data have neighbours along each of their spatial axes, which the networks see.",
    )

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None  # _needs
        spaces = [DataSpace.of(A, self.channel_axis) for A in problems.maps]
        self.neighbours_ = tuple(all(beside) for beside in zip(*(s.neighbours for s in spaces), strict=True))
        super()._fit(problems, images, data)

    def _make_module(self) -> Unrolled:
        return PrimalDualUnrolled(
            self.n_channels_,
            self.n_iterations,
            self.n_features,
            self.n_states,
            shared=self.shared,
            neighbours=self.neighbours_,
        )


class PrimalDualUnrolled(Unrolled):
    """``h <- h + D(h, A f_1, y)`` and ``f <- f + P(f, A^* h_0)`` for several images ``f`` and data ``h``."""

    sees_data = True

    def __init__(
        self,
        n_channels: tuple[int, int],
        n_iterations: int,
        n_features: int,
        n_states: int,
        *,
        shared: bool,
        neighbours: tuple[bool, ...],
    ) -> None:
        super().__init__(n_channels, n_iterations)
        c, d = n_channels
        self.neighbours = neighbours
        of_data = tuple(3 if beside else 1 for beside in neighbours)
        of_images = (3,) * len(neighbours)
        n_updates = 1 if shared else n_iterations
        self.n_states = n_states
        self.dual = nn.ModuleList(
            Update((n_states + 2) * d, n_states * d, n_features, of_data) for _ in range(n_updates)
        )
        self.primal = nn.ModuleList(
            Update((n_states + 1) * c, n_states * c, n_features, of_images) for _ in range(n_updates)
        )

    def stages(
        self,
        A: LinearMap,
        data: Tensor,
        start: Tensor,
        channel_axis: int | None = None,
        weights: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images after each iteration, of the kind and shape of ``start``."""
        found = DataSpace.of(A, channel_axis).neighbours
        if any(seen and not beside for seen, beside in zip(self.neighbours, found, strict=True)):
            raise ValueError(
                f"the networks see neighbours along the axes of the data: {self.neighbours}; expected data "
                f"that have them, got {found} from an operator to data {A.dimsd}"
            )
        return super().stages(A, data, start, channel_axis, weights)

    def iterates(self, problem: ScaledProblem) -> Iterator[Tensor]:
        """Yield the images after each iteration."""
        y, c, d = problem.data, *self.n_channels
        f = _repeated(problem.start, self.n_states)
        h = _repeated(torch.zeros_like(y), self.n_states)
        second = slice(c, 2 * c) if self.n_states > 1 else slice(0, c)
        for k in range(self.n_iterations):
            D, P = self.dual[k % len(self.dual)], self.primal[k % len(self.primal)]
            h = h + D(torch.cat([h, problem.forward(f[:, second]), y], 1))
            f = f + P(torch.cat([f, problem.adjoint(h[:, :d])], 1))
            yield f[:, :c]


def _repeated(x: Tensor, n: int) -> Tensor:
    """The channels ``n`` times."""
    return torch.cat([x] * n, 1)
