"""Reconstruction with a generative model that knows where it is unsure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pylops
import torch
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skinverse.estimators._base import LearnedReconstructor
from skinverse.estimators._generative_inference import (
    Energy,
    Measured,
    adapt,
    measure,
    minimum,
    noise,
    uncertainty,
)
from skinverse.estimators._generative_model import (
    GenerativeModel,
    check_generator,
    check_parameters,
    check_size,
    learn,
    planes_of,
    window,
)
from skinverse.estimators._learning import analytic_inverse
from skinverse.estimators._validation import (
    as_batch,
    check_whole,
    information,
    per_sample,
    resolve_device,
    same_kind,
    seed_of,
)
from skinverse.functionals import as_channels, from_channels
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution
from skinverse.training import Trainer

# Images whose deviations from the range are measured; pixels that the model looks at at once.
_N_MEASURED, _AT_ONCE = 64, 2**16


class GenerativeCovariancePrior(LearnedReconstructor):
    """Generative prior with learned covariance: near the range of a generator, as far as it is unsure.

    ``fit`` learns from images alone a variational autoencoder ``x ~ N(G(z), Sigma(z))``, ``z ~ N(0, I)``,
    where ``Sigma(z)^-1 = L L^T`` has a sparse Cholesky factor that couples neighbouring pixels; first the
    mean, then, with the mean held, the covariance. ``predict`` minimises, for every operator and noise,
    ``1/2 ||A x - y||^2 + lam R(x)`` with

    ``R(x) = min_z 1/2 log det Sigma(z) + 1/2 ||x - G(z)||^2_{Sigma(z)^-1} + 1/2 ||z||^2``.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising). It plays no part in ``fit``.
    covariance : {"full", "diagonal", "identity"}, default="full"
        ``Sigma(z)``: neighbouring pixels correlated, every pixel its own variance, one variance for all.
    neighbourhood : odd int or None, default=None
        Side of the window in which the factor couples pixels; None is 5, or less for smaller images.
    n_latent : int, default=16
        Number of latent variables.
    constraint : {"soft", "encoded", "range", "sparse", "adapted"}, default="soft"
        How far ``x`` may leave the range of ``G``:

        - ``"soft"``: as the covariance says, the ``R`` above;
        - ``"encoded"``: as far, ``z`` being the encoder's mean for ``x`` instead of the minimiser, and
          ``x`` the best for ``z``: linear systems instead of a descent, few where ``lam`` is small, from
          one start;
        - ``"range"``: not at all, ``x = G(z)`` and ``R = 1/2 ||z||^2``;
        - ``"sparse"``: at few pixels, ``R = min_z ||x - G(z)||_1 / b + 1/2 ||z||^2`` with the mean absolute
          deviation ``b`` of the training images;
        - ``"adapted"``: ``x = G(z)``, the weights of ``G`` adapting to each image up to the noise's norm.
    lam : float >= 0, "auto" or "discrepancy", default="auto"
        Weight of ``R``. "auto" makes the minimiser the most probable image: ``noise_std**2``, for complex
        data half of it; "discrepancy" makes ``||A x - y||`` the noise's norm, and warns where it cannot.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one (real or complex) measurement; needed by "discrepancy", else
        by default 5 % of the root mean square of an image's data.
    n_restarts : int, default=4
        Starts of ``z``, the first from the encoded pseudo-inverse, the others random; the best is kept.
    min_std : float > 0 or None, default=None
        Floor of each pixel's standard deviation given those that follow it, without which what never varies
        has an infinite likelihood. None is a tenth of the standard deviation of all values.
    generator : nn.Module or None, default=None
        A trained decoder, (n, n_latent) to images, taken as it is instead of our own; it needs
        ``covariance="identity"`` and is not taken by :meth:`save`.
    max_steps : int, default=200
        Most steps over ``z`` for each start, of each descent where one follows another.
    tol : float, default=1e-4
        A start is finished when a step changes ``z`` by less than this relative to its norm.
    trainer : Trainer or None, default=None
        How to train each stage; by default 3000 steps of 64 images.
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
    module_ : nn.Module
        Encoder and decoders.
    dims_ : tuple of int
        Shape of the images; the decoders are tied to it.
    history_ : list of dict
        One entry per epoch, ``phase`` being "mean" or "covariance".

    Notes
    -----
    ``log det Sigma`` has the factor 1/2 of the normal density. For each ``z`` the best ``x`` solves a linear
    system by preconditioned conjugate gradients, and L-BFGS descends over ``z``; but for the tolerance of
    that system the objective never rises.

    References
    ----------
    M. A. G. Duff, I. J. A. Simpson, M. J. Ehrhardt and N. D. F. Campbell, VAEs with structured image
    covariance applied to compressed sensing MRI, Physics in Medicine and Biology 68, 2023.
    A. Bora, A. Jalal, E. Price and A. G. Dimakis, Compressed sensing using generative models, ICML, 2017.
    D. Narnhofer, K. Hammernik, F. Knoll and T. Pock, Inverse GANs for accelerated MRI reconstruction,
    SPIE Wavelets and Sparsity XVIII, 2019.
    M. Gonzalez, A. Almansa and P. Tan, Solving inverse problems by joint posterior maximization with
    autoencoding prior, SIAM Journal on Imaging Sciences 15, 2022 ("encoded").

    Examples
    --------
    >>> from skinverse import GenerativeCovariancePrior, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> prior = GenerativeCovariancePrior(A, n_latent=2, noise_std=0.01, trainer=Trainer(max_epochs=2))
    >>> x, std = prior.fit(images).predict(data, return_std=True)
    >>> x.shape, std.shape, prior.sample(3).shape
    ((8, 16, 16), (8, 16, 16), (3, 16, 16))
    """

    _needs: ClassVar[tuple[str, ...]] = ("X_true",)
    _paired: ClassVar[bool] = False
    _seen: ClassVar[tuple[str, ...]] = ("shape_", "real_")
    _load: ClassVar[int] = 32
    _reconstruction_params: ClassVar[tuple[str, ...]] = (
        "lam",
        "noise_std",
        "constraint",
        "n_restarts",
        "max_steps",
        "tol",
        "verbose",
        "device",
    )
    __metadata_request__predict: ClassVar[dict[str, str]] = {"return_std": UNUSED}
    module_: GenerativeModel

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        covariance: str = "full",
        neighbourhood: int | None = None,
        n_latent: int = 16,
        constraint: str = "soft",
        lam: float | str = "auto",
        noise_std: float | None = None,
        n_restarts: int = 4,
        min_std: float | None = None,
        generator: nn.Module | None = None,
        max_steps: int = 200,
        tol: float = 1e-4,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.covariance = covariance
        self.neighbourhood = neighbourhood
        self.n_latent = n_latent
        self.constraint = constraint
        self.lam = lam
        self.noise_std = noise_std
        self.n_restarts = n_restarts
        self.min_std = min_std
        self.generator = generator
        self.max_steps = max_steps
        self.tol = tol
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert images is not None  # _needs
        check_parameters(self)
        channels = as_channels(images)
        self.dims_, self.real_ = tuple(images.shape[1:]), not images.is_complex()
        self.shape_ = (channels.shape[1], channels.shape[2], channels.shape[3])
        window(self.neighbourhood, self.shape_[1:])
        check_generator(self.generator, self.covariance, self.n_latent, channels)
        identity = pylops.Identity(self.dims_, dtype=str(images.dtype).removeprefix("torch."))
        super()._fit(as_torch(identity), images, images)  # whatever the operator

    def _make_module(self) -> nn.Module:
        return GenerativeModel(
            self.shape_,
            self.n_latent,
            covariance=self.covariance,
            neighbourhood=window(self.neighbourhood, self.shape_[1:]),
            generator=copy.deepcopy(self.generator),
        )

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        history = learn(module, as_channels(images), self.trainer, self.min_std, seed, verbose)
        identity, some = as_torch(pylops.Identity(images.shape[1:])), images[:_N_MEASURED]
        measure(module.eval(), Measured(identity, some, self.shape_, real=self.real_), self.n_restarts)
        return history

    def predict(self, Y_meas: Any, *, return_info: bool = False, return_std: bool = False) -> Any:
        """Reconstruct images from measurements.

        Parameters
        ----------
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd)
            Measurements; flat (n_samples, n_measurements) is accepted.
        return_info : bool, default=False
            Also return how each image's reconstruction ended.
        return_std : bool, default=False
            Also return how unsure each pixel is: standard deviations of ``exp(-J / lam)``, the posterior
            under "auto", with ``G`` linearised around the ``z`` found and ``Sigma`` held; from 64 draws.

        Returns
        -------
        X_hat : ndarray or Tensor of shape (n_samples, *operator.dims)
            The images, of the kind and precision of ``Y_meas``.
        std : ndarray or Tensor of shape (n_samples, *operator.dims), only if ``return_std``
            Standard deviations; of complex pixels ``sqrt(var Re + var Im)``.
        info : Bunch, only if ``return_info``
            Arrays of shape (n_samples,): ``n_steps``, ``converged``, ``residual``, ``objective``, ``lam``.

        Raises
        ------
        ValueError
            If ``Y_meas`` is empty, not finite or of the wrong shape, the operator's images have another size
            than those of ``fit``, or the constraint has no covariance for ``return_std``.

        Warns
        -----
        ConvergenceWarning
            If images stopped before the tolerance was met; the message counts them.
        """
        if return_std and self.constraint not in ("soft", "encoded"):
            known = '"soft" and "encoded" have a covariance of pixels'
            raise ValueError(f"return_std: only {known}, not {self.constraint!r}")
        solution = self._predicted(Y_meas, self._reconstruct_with_std if return_std else self._reconstruct)
        std = [solution.extra.pop("std")] if return_std else []
        found = [same_kind(x, Y_meas) for x in (solution.x, *std)] + [information(solution)] * return_info
        return tuple(found) if len(found) > 1 else found[0]

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        energy, latent, level = self._minimum(A, data)
        extra = {"lam": energy.lam}
        if self.constraint == "adapted":
            found = adapt(energy, latent.x, level, self.max_steps)
            return replace(found, x=energy.data.image(found.x), extra=extra)
        x, solved = energy.image(latent.x)
        return replace(latent, x=energy.data.image(x), converged=latent.converged & solved, extra=extra)

    def _reconstruct_with_std(self, A: LinearMap, data: Tensor) -> Solution:
        energy, latent, _ = self._minimum(A, data)
        (x, solved), (std, known) = energy.image(latent.x), uncertainty(energy, latent.x)
        extra = {"lam": energy.lam, "std": energy.data.image(std).abs()}
        converged = latent.converged & solved & known
        return replace(latent, x=energy.data.image(x), converged=converged, extra=extra)

    def _minimum(self, A: LinearMap, data: Tensor) -> tuple[Energy, Solution, Tensor]:
        check_parameters(self)
        check_size(A, self.dims_)
        model = copy.deepcopy(self.module_).to(data.device, data.dtype.to_real())
        measured = Measured(A, data, self.shape_, real=self.real_)
        first = measured.channels(data if A.identity else analytic_inverse(A, data))
        return minimum(
            model,
            measured,
            model.starts(first, 1 if self.constraint == "encoded" else self.n_restarts),
            constraint=self.constraint,
            lam=self.lam,
            noise_std=noise(data, self.noise_std),
            max_steps=self.max_steps,
            tol=self.tol,
        )

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> np.ndarray:
        """Draw images from the model.

        Parameters
        ----------
        n_samples : int, default=1
            How many.
        random_state : int, RandomState or None, default=None
            Seed; None draws others each time.

        Returns
        -------
        ndarray of shape (n_samples, *dims_)
            The images, with the noise that the covariance describes.
        """
        check_is_fitted(self)
        check_whole(n_samples, "n_samples", 1)
        drawn = copy.deepcopy(self.module_).to("cpu").draw(n_samples, seed_of(random_state))
        return np.asarray(self._images(drawn).numpy())

    def score_samples(self, X_true: Any) -> Any:
        """Evidence bound: a lower bound on the log-density of images.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *dims_)
            Images.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            In nats, the mean over 16 draws of ``z``.

        Raises
        ------
        ValueError
            If the generator is not our own: it has no encoder.
        """
        return same_kind(self._by_parts(X_true, lambda model, x: model.evidence(x)), X_true)

    def covariance_row(self, X_true: Any, pixel: tuple[int, ...]) -> Any:
        """Learned covariance of one pixel with all others, near given images.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *dims_)
            Images; each is encoded.
        pixel : tuple of int
            (row, column) or (channel, row, column), the first channel by default.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, *dims_)
            Positive and negative covariances, for complex images those of the real part.

        Raises
        ------
        ValueError
            If the generator is not our own: it has no encoder.
        IndexError
            If there is no such pixel.
        """
        check_is_fitted(self)
        at = planes_of(pixel, self.shape_, real=self.real_)
        rows = self._by_parts(X_true, lambda model, x: model.covariance_row(x, at))
        return same_kind(self._images(rows).real, X_true)

    @torch.no_grad()
    def _by_parts(self, X_true: Any, ask: Callable[[GenerativeModel, Tensor], Tensor]) -> Tensor:
        """What the model says of images, few at a time."""
        check_is_fitted(self)
        if not self.module_.own:
            raise ValueError("the generator is not our own and has no encoder to find latent variables with")
        batch = as_batch(X_true, "X_true", resolve_device(self.device))
        images = per_sample(batch, self.dims_, "X_true", "dims_")
        if self.real_ and images.is_complex():
            raise ValueError("X_true: expected real images like those of fit, got complex ones")
        x = as_channels(images if self.real_ else images.to(images.dtype.to_complex()))
        model, size = copy.deepcopy(self.module_).to(x), max(1, _AT_ONCE // x[0].numel())
        return torch.cat([ask(model, part) for part in x.split(size)])

    def _images(self, channels: Tensor) -> Tensor:
        dtype = channels.dtype if self.real_ else channels.dtype.to_complex()
        return from_channels(channels, torch.empty(len(channels), *self.dims_, dtype=dtype))
