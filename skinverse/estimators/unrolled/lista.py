"""LISTA: iterative soft thresholding whose dictionary and thresholds are learned."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from skinverse._batches import as_batch
from skinverse._cosines import inverse_cosine_transform
from skinverse._filters import analyse, synthesise
from skinverse._parameters import Flag, Instance, Integer, OneOf, ParameterError, fitted, parameter
from skinverse.estimators.unrolled.base import ScaledProblem, Unrolled, UnrolledReconstructor

# Threshold to begin with, in units of the images' spread.
_THRESHOLD = 0.05


class LISTA(UnrolledReconstructor):
    """Learned iterative soft thresholding: sparse codes of the image in a dictionary that is learned.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||D z_N(y) - x||^2`` over pairs, where

    ``z <- soft(z - W A^*(A D z - y), theta)``

    and ``z_0 = W A_delta^+ y``. Before the training, ``D`` is a cosine transform, ``W`` its adjoint, and this
    is iterative soft thresholding (ISTA) for ``1/2 ||A D z - y||^2 + theta ||z||_1``.

    See Also
    --------
    WaveletRecon : Sparse in wavelets; nothing is learned.

    Notes
    -----
    The method's own training has 2000 steps of 8 images; the learning rate falls from 1e-3 to 1e-4, and
    gradients are shortened to norm 1.

    What is learned is the map of normalised images, ``(x - level_) / spread_``, from ``(y - A level_) /
    spread_``. Trained on images and data times a number, or with a constant added to the images and ``A`` of
    it to the data, it gives the same reconstructions times it, or with it added. Images of another unit or
    level than those of the training need another training: the thresholds are fixed numbers. With a
    dictionary of your own ``level_`` is 0, since what is sparse would not be without its level; then only the
    unit plays no part.

    Under counts ``A`` is ``W^1/2 A`` and ``y`` is ``W^1/2 y``, with weights that ``noise`` describes.

    References
    ----------
    K. Gregor and Y. LeCun, Learning fast approximations of sparse coding, ICML, 2010.
    X. Chen, J. Liu, Z. Wang and W. Yin, Theoretical linear convergence of unfolded ISTA and its practical
    weights and thresholds, NeurIPS, 2018.

    Examples
    --------
    >>> from skinverse import LISTA, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LISTA(A, n_iterations=3, kernel_size=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> method.predict(data).shape
    (8, 16, 16)
    """

    not_promised = {
        "phase": "Real and imaginary parts have thresholds of their own: the image changes by 0.27 relative.",
    }

    dictionary: str | ArrayLike = parameter(
        default="convolutional",
        allowed=OneOf("convolutional", "dense")
        | Instance(np.ndarray, Tensor, list, tuple, name="array of atoms"),
        kind='{"convolutional", "dense"} or array-like of shape (n_atoms, *operator.dims)',
        doc="""
        Dictionary ``D`` to begin with: ``kernel_size**2`` cosine filters (``kernel_size**3`` of volumes),
        which then fit images of any size; the cosine transform of the whole image; or atoms of your own, such
        as ``np.eye(n)`` for sparse signals. All but the first know images of one size and have as many
        weights as atoms times pixels.
        Codes are real: complex images need each atom of yours also times ``1j``.""",
    )
    kernel_size: int = parameter(
        default=7,
        allowed=Integer(ge=1, odd=True),
        doc="Side of the filters of a convolutional dictionary, in pixels.",
    )
    tied: bool = parameter(
        default=True,
        allowed=Flag(),
        doc="Whether ``W`` stays the adjoint of ``D``; otherwise it is learned on its own.",
    )
    shared: bool = parameter(
        default=True, allowed=Flag(), doc="Whether all iterations have the same weights."
    )

    module_: Unrolled = fitted(kind="nn.Module", doc="Dictionary and thresholds.")

    def _level_and_spread(self, images: Tensor) -> tuple[complex, float]:
        """Of images that are sparse in atoms of the user's no level is taken: they are not without it."""
        level, spread = super()._level_and_spread(images)
        return (level if isinstance(self.dictionary, str) else 0 * level), spread

    def _make_module(self) -> Unrolled:
        kind = Convolutional if self._is("convolutional") else Dense
        n_updates = 1 if self.shared else self.n_iterations
        return kind(self.n_channels_, self.n_iterations, self._atoms(), n_updates, tied=self.tied)

    def _is(self, name: str) -> bool:
        """Whether the dictionary is the one of this name; an array would be compared entry by entry."""
        return isinstance(self.dictionary, str) and self.dictionary == name

    def _atoms(self) -> Tensor:
        """The dictionary to begin with, (n_atoms, channels, *space), of norm 1."""
        if self._is("convolutional"):
            size = [self.kernel_size] * self.n_axes_
            return cosines(self.n_channels_[0], *size) / math.prod(size) ** 0.5  # so many patches of a pixel
        assert self.operator_ is not None  # fitted
        dims = tuple(self.operator_.dims)
        kind = torch.float64 if self.real_ else torch.complex128
        if self._is("dense"):
            return cosines(*self._channels(torch.empty(1, *dims, dtype=kind)).shape[1:])
        atoms = as_batch(self.dictionary, "dictionary", torch.device("cpu"))
        if self.real_ and atoms.is_complex():
            raise ParameterError("dictionary: expected real atoms for real images, got complex ones")
        if atoms.shape[1:] != dims:
            expected = ", ".join(["n_atoms", *map(str, dims)])
            raise ParameterError(
                f"dictionary: expected atoms of shape ({expected}), got {tuple(atoms.shape)}"
            )
        channels = self._channels(atoms.to(kind))
        return channels / torch.linalg.matrix_norm(channels.flatten(1), 2).clamp_min(1e-30)


class Shrinkage(Unrolled):
    """``z <- soft(z - W A^*(A D z - y), theta)``.

    The weights are the atoms relative to their root mean square, so that one learning rate fits every
    dictionary.
    """

    size: Tensor

    def __init__(
        self, n_channels: tuple[int, int], n_iterations: int, atoms: Tensor, n_updates: int, *, tied: bool
    ) -> None:
        super().__init__(n_channels, n_iterations)
        self.register_buffer("size", atoms.square().mean().sqrt().clamp_min(1e-30))
        # Not `repeat`: a file may ask for any number of iterations, and while it is checked `empty` is free.
        relative = torch.empty(n_updates, *atoms.shape, dtype=atoms.dtype).copy_(atoms / self.size)
        self.synthesis = nn.Parameter(relative)
        self.analysis = None if tied else nn.Parameter(relative.clone())
        waves = atoms.flatten(2).std(2, correction=0).sum(1) > 1e-6  # a constant is not sparse
        self.threshold = nn.Parameter(_THRESHOLD * waves.to(atoms.dtype).repeat(n_updates, 1))

    def iterates(self, problem: ScaledProblem) -> Iterator[Tensor]:
        """Yield the images after each iteration."""
        D = self.size * self.synthesis
        W = D if self.analysis is None else self.size * self.analysis
        theta = self.threshold.clamp_min(0)
        z = self.analyse(problem.start, W[0])
        for k in range(self.n_iterations):
            i = k % len(D)
            gradient = problem.gradient(self.synthesise(z, D[i]))
            z = soft(z - self.analyse(gradient, W[i]), theta[i])
            yield self.synthesise(z, D[i])

    @abstractmethod
    def synthesise(self, z: Tensor, atoms: Tensor) -> Tensor:
        """``D z``, codes to channels."""

    @abstractmethod
    def analyse(self, x: Tensor, atoms: Tensor) -> Tensor:
        """``D^T x``, channels to codes, (n, n_atoms, ...)."""


class Convolutional(Shrinkage):
    """Each atom is centred at every pixel; what is outside of the image is mirrored into it.

    Cosine filters are a tight frame with these borders, too: each pixel is part of ``k^2`` patches.
    """

    def synthesise(self, z: Tensor, atoms: Tensor) -> Tensor:
        """``D z``."""
        return synthesise(z, atoms)

    def analyse(self, x: Tensor, atoms: Tensor) -> Tensor:
        """``D^T x``."""
        return analyse(x, atoms)


class Dense(Shrinkage):
    """Each atom is an image."""

    def synthesise(self, z: Tensor, atoms: Tensor) -> Tensor:
        """``D z``."""
        return (z @ atoms.flatten(1)).view(len(z), *atoms.shape[1:])

    def analyse(self, x: Tensor, atoms: Tensor) -> Tensor:
        """``D^T x``."""
        if x.shape[1:] != atoms.shape[1:]:
            raise ValueError(
                f"a dense dictionary knows images of {tuple(atoms.shape[1:])} (channels, *space), got "
                f'{tuple(x.shape[1:])}: dictionary="convolutional" takes all sizes'
            )
        return x.flatten(1) @ atoms.flatten(1).T


def soft(z: Tensor, threshold: Tensor) -> Tensor:
    """Soft thresholding, ``sign(z) max(|z| - theta, 0)``, with one threshold for each atom."""
    level = threshold.reshape(-1, *[1] * (z.ndim - 2))
    return z.sign() * F.relu(z.abs() - level)


def cosines(channels: int, *size: int) -> Tensor:
    """Orthonormal cosines of each channel, (n_atoms, channels, *size), as many as there are numbers."""
    n = math.prod(size)
    pixels = torch.eye(n, dtype=torch.float64).reshape(n, *size)
    waves = inverse_cosine_transform(pixels, tuple(range(-len(size), 0))).reshape(n, n)
    each_channel = torch.eye(channels, dtype=torch.float64)
    return torch.kron(each_channel, waves).reshape(-1, channels, *size)
