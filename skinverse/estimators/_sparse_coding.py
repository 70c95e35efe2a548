"""LISTA: iterative soft thresholding whose dictionary and thresholds are learned."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pylops
import scipy.fft
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._iterations import LearnedIterations, Scaled, Unrolled
from skinverse.estimators._validation import as_batch
from skinverse.functionals import as_channels
from skinverse.training import Trainer

DICTIONARIES = ("convolutional", "dense")
# Threshold to begin with, in units of the images' spread.
_THRESHOLD = 0.05


class LISTA(LearnedIterations, LearnedReconstructor):
    """Learned iterative soft thresholding: sparse codes of the image in a dictionary that is learned.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||D z_N(y) - x||^2`` over pairs, where

    ``z <- soft(z - W A^*(A D z - y), theta)``

    and ``z_0 = W A_delta^+ y``. Before the training, ``D`` is a cosine transform, ``W`` its adjoint, and this
    is iterative soft thresholding (ISTA) for ``1/2 ||A D z - y||^2 + theta ||z||_1``.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    dictionary : {"convolutional", "dense"} or array-like of shape (n_atoms, *dims), default="convolutional"
        The ``D`` to begin with: ``kernel_size**2`` cosine filters, which then fit images of any size; the
        cosine transform of the whole image; or atoms of your own, such as ``np.eye(n)`` for sparse signals.
        All but the first know images of one size and have as many weights as atoms times pixels. Codes are
        real: complex images need each atom of yours also times ``1j``.
    n_iterations : int, default=10
        Number of iterations; fixed by the training.
    kernel_size : int, default=7
        Side of the filters of a convolutional dictionary.
    tied : bool, default=True
        Whether ``W`` stays the adjoint of ``D``; else it is learned on its own.
    shared : bool, default=True
        Whether all iterations have the same weights.
    initial : estimator or None, default=None
        What reconstructs the images to start from, fitted on the same pairs; None is the analytic inverse
        (filtered back-projection, zero-filled or regularized pseudo-inverse).
    bounds : (low, high) or None, default=None
        Bounds of the images, None for no bound: every iterate that is returned is projected.
    trainer : Trainer or None, default=None
        How to train; by default 2000 steps with gradients of norm 1 at most.
    memory : str, joblib.Memory or None, default=None
        Where to keep what has been trained.
    warm_start : bool, default=False
        Whether ``fit`` continues from what it learned before.
    random_state : int, RandomState or None, default=0
        Seed of the training.
    verbose : int, default=0
        1 shows progress, 2 a line per epoch.
    device : str, default="auto"
        "cpu", "cuda", or CUDA where there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator
        The operator seen by ``fit``.
    initial_ : estimator or None
        The fitted ``initial``.
    module_ : nn.Module
        Dictionary and thresholds.
    history_ : list of dict
        One entry per epoch.

    Raises
    ------
    ValueError
        If the dictionary is unknown or its atoms are not images.

    See Also
    --------
    WaveletRecon : Sparse in wavelets; nothing is learned.

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

    _whole: ClassVar[tuple[str, ...]] = ("n_iterations", "kernel_size")

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        dictionary: str | ArrayLike = "convolutional",
        n_iterations: int = 10,
        kernel_size: int = 7,
        tied: bool = True,
        shared: bool = True,
        initial: BaseReconstructor | None = None,
        bounds: Any = None,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.dictionary = dictionary
        self.n_iterations = n_iterations
        self.kernel_size = kernel_size
        self.tied = tied
        self.shared = shared
        self.initial = initial
        self.bounds = bounds
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _make_module(self) -> Unrolled:
        n_updates = 1 if self.shared else self.n_iterations
        if self._named("convolutional"):
            c, k = self.n_channels_[0], self.kernel_size
            atoms = torch.from_numpy(cosines(c, k, k) / k)
            return Convolutional(self.n_channels_, self.n_iterations, atoms, n_updates, tied=self.tied)
        return Dense(self.n_channels_, self.n_iterations, self._atoms(), n_updates, tied=self.tied)

    def _named(self, name: str) -> bool:
        return isinstance(self.dictionary, str) and self.dictionary == name

    def _atoms(self) -> Tensor:
        """Whole images to begin with, (n_atoms, channels, height, width), of norm 1 together."""
        kind = torch.float64 if self.real_ else torch.complex128
        operator: Any = self.operator_
        dims = tuple(operator.dims)
        if self._named("dense"):
            return torch.from_numpy(cosines(*as_channels(torch.zeros(1, *dims, dtype=kind)).shape[1:]))
        if isinstance(self.dictionary, str):
            raise ValueError(
                f"dictionary: expected one of {list(DICTIONARIES)} or atoms, got {self.dictionary!r}"
            )
        atoms = as_batch(self.dictionary, "dictionary", torch.device("cpu"))
        if self.real_ and atoms.is_complex():
            raise ValueError("dictionary: expected real atoms for real images, got complex ones")
        if atoms.shape[1:] != dims:
            expected = ", ".join(["n_atoms", *map(str, dims)])
            raise ValueError(f"dictionary: expected atoms of shape ({expected}), got {tuple(atoms.shape)}")
        channels = as_channels(atoms.to(kind))
        return channels / torch.linalg.matrix_norm(channels.flatten(1), 2).clamp_min(1e-30)


class Shrinkage(Unrolled):
    """``z <- soft(z - W A^*(A D z - y), theta)``; what is trained are the atoms relative to their size."""

    size: Tensor

    def __init__(
        self, n_channels: tuple[int, int], n_iterations: int, atoms: Tensor, n_updates: int, *, tied: bool
    ) -> None:
        super().__init__(n_channels, n_iterations)
        self.register_buffer("size", atoms.square().mean().sqrt().clamp_min(1e-30))
        relative = (atoms / self.size).repeat(n_updates, 1, 1, 1, 1)
        self.synthesis = nn.Parameter(relative)
        self.analysis = None if tied else nn.Parameter(relative.clone())
        waves = atoms.flatten(2).std(2, correction=0).sum(1) > 1e-6  # a constant is not sparse
        self.threshold = nn.Parameter(_THRESHOLD * waves.to(atoms.dtype).repeat(n_updates, 1))

    def iterates(self, problem: Scaled) -> Iterator[Tensor]:
        D = self.size * self.synthesis
        W = D if self.analysis is None else self.size * self.analysis
        theta = self.threshold.clamp_min(0)
        z = self._analyse(problem.start, W[0])
        for k in range(self.n_iterations):
            i = k % len(D)
            gradient = problem.adjoint(problem.forward(self._synthesise(z, D[i])) - problem.data)
            z = soft(z - self._analyse(gradient, W[i]), theta[i])
            yield self._synthesise(z, D[i])

    @abstractmethod
    def _synthesise(self, z: Tensor, atoms: Tensor) -> Tensor:
        """``D z``, codes to channels."""

    @abstractmethod
    def _analyse(self, x: Tensor, atoms: Tensor) -> Tensor:
        """``D^T x``, channels to codes, (n, n_atoms, ...)."""


class Convolutional(Shrinkage):
    """Each atom stands everywhere, also partly outside of the image."""

    def _synthesise(self, z: Tensor, atoms: Tensor) -> Tensor:
        return F.conv_transpose2d(z, atoms, padding=atoms.shape[-1] - 1)

    def _analyse(self, x: Tensor, atoms: Tensor) -> Tensor:
        return F.conv2d(x, atoms, padding=atoms.shape[-1] - 1)


class Dense(Shrinkage):
    """Each atom is an image."""

    def _synthesise(self, z: Tensor, atoms: Tensor) -> Tensor:
        return (z @ atoms.flatten(1)).view(len(z), *atoms.shape[1:])

    def _analyse(self, x: Tensor, atoms: Tensor) -> Tensor:
        if x.shape[1:] != atoms.shape[1:]:
            raise ValueError(
                f"a dense dictionary knows images of {tuple(atoms.shape[1:])} (channels, height, width), got "
                f'{tuple(x.shape[1:])}: dictionary="convolutional" takes all sizes'
            )
        return x.flatten(1) @ atoms.flatten(1).T


def soft(z: Tensor, threshold: Tensor) -> Tensor:
    """Towards zero by the threshold of each atom, at most to zero."""
    level = threshold.reshape(-1, *[1] * (z.ndim - 2))
    return z.sign() * F.relu(z.abs() - level)


def cosines(channels: int, height: int, width: int) -> np.ndarray:
    """Orthonormal cosines of each channel, (channels height width, channels, height, width)."""
    n = height * width
    waves = scipy.fft.idctn(np.eye(n).reshape(n, height, width), axes=(1, 2), norm="ortho")
    return np.kron(np.eye(channels), waves.reshape(n, n)).reshape(-1, channels, height, width)
