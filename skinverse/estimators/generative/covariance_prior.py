"""Reconstruction with a generative model that knows the covariance of its errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pylops
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skinverse._batches import as_batch, rowwise
from skinverse._defaults import copy_module, standard_defaults, survive_fork
from skinverse._parameters import (
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
from skinverse._tensors import from_channels
from skinverse.estimators._base import Measured
from skinverse.estimators._declarations import (
    max_steps_parameter,
    noise_of_squares_parameter,
    tol_parameter,
)
from skinverse.estimators._learned import LearnedReconstructor, analytic_inverse
from skinverse.estimators._problems import Problem, Problems
from skinverse.estimators._units import NormalisedFidelity, deviation, without_gain
from skinverse.estimators._validation import (
    check_noise_known,
    information,
    per_sample,
    resolve_device,
    same_kind,
    seed_of,
)
from skinverse.estimators.generative.generator import NormalisedGenerator, check_generator
from skinverse.estimators.generative.image_adaptive import adapt_weights
from skinverse.estimators.generative.inference import infer_latent, measure_deviation, noise_level
from skinverse.estimators.generative.losses import covariance_loss, evidence_bound, mean_loss
from skinverse.estimators.generative.model import GenerativeModel, window_for
from skinverse.estimators.generative.objectives import ChannelFidelity, LatentObjective
from skinverse.estimators.generative.uncertainty import posterior_std
from skinverse.noise import NoiseModel
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution
from skinverse.training import Phase

# Images in one step of the training: 64 of up to 28 x 28 pixels, fewer of larger ones, but at least 8.
_BATCH_SIZE, _SMALL_IMAGE, _MIN_BATCH_SIZE = 64, 28**2, 8
# Images of which the deviation from the range is measured.
_N_MEASURED = 64
# Values of images that the model sees at once outside of trainings.
_AT_ONCE = 2**16


class GenerativeCovariancePrior(LearnedReconstructor):
    """Generative prior with learned covariance.

    ``fit`` learns from images alone, whatever the operator, a variational autoencoder
    ``x ~ N(G(z), Sigma(z))``, ``z ~ N(0, I)``, where ``Sigma(z)^-1 = L L^T`` has a sparse Cholesky factor
    that couples neighbouring pixels: first the mean, then, with the mean held, the covariance. ``predict``
    minimises, for every operator and noise, ``D(A x, y) + lam R(x)`` with

    ``R(x) = min_z 1/2 log det Sigma(z) + 1/2 ||x - G(z)||^2_{Sigma(z)^-1} + 1/2 ||z||^2``.

    Notes
    -----
    ``log det Sigma`` has the factor 1/2 of the normal density. For each ``z`` the best ``x`` solves a linear
    system by preconditioned conjugate gradients, and L-BFGS descends over ``z``; but for the tolerance of
    that system the objective never rises.

    The training has the phases "mean" and "covariance". The method's own has 3000 steps in each of them, of
    64 images, or of fewer, but at least 8, where they have more than 28 x 28 pixels; the learning rate falls
    from 1e-3 to 5e-5, gradients are shortened to norm 10, and nothing is held out.

    What is learned is the density of normalised images, ``(x - level_) / spread_``, and ``G``, ``Sigma`` and
    ``R`` are theirs; ``lam`` and ``noise`` are in the units of the data. Trained on images times a number
    or with a constant added, with data to match, the reconstructions are the same times it, or with it added.
    A trained model knows one unit and one level.

    The bias that ``D`` has where counts are few (see ``noise``) stays, since the training knows no data.

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
    >>> prior = GenerativeCovariancePrior(A, n_latent=2, noise=0.01, trainer=Trainer(max_epochs=2))
    >>> x, std = prior.fit(images).predict(data[:2], return_std=True)
    >>> x.shape, std.shape, prior.sample(3).shape
    ((2, 16, 16), (2, 16, 16), (3, 16, 16))
    """

    not_promised = {
        "other_sizes": "The decoders make images of one size.",
        "phase": (
            "The model generates real and imaginary parts as two channels: the image changes by 0.09 "
            "relative."
        ),
    }

    _needs: ClassVar[tuple[str, ...]] = ("X_true",)
    _paired: ClassVar[bool] = False
    _load: ClassVar[int] = 32
    _reads_rows: ClassVar[bool] = True
    _reconstruction_params: ClassVar[tuple[str, ...]] = (
        "operator",
        "lam",
        "noise",
        "constraint",
        "n_restarts",
        "max_steps",
        "tol",
        "verbose",
        "device",
    )
    __metadata_request__predict: ClassVar[dict[str, str]] = {"return_std": UNUSED}

    covariance: str = parameter(
        default="full",
        allowed=OneOf("full", "diagonal", "identity"),
        doc="""
        Form of ``Sigma(z)``: "full" correlates neighbouring pixels, "diagonal" gives every pixel a variance
        of its own, "identity" gives all of them the same.""",
    )
    neighbourhood: int | None = parameter(
        default=None,
        allowed=Integer(ge=1, odd=True) | Null(),
        doc="""
        Side of the window in which the Cholesky factor couples pixels; None is 5, or less for smaller
        images.""",
    )
    n_latent: int = parameter(default=16, allowed=Integer(ge=1), doc="Number of latent variables.")
    constraint: str = parameter(
        default="soft",
        allowed=OneOf("soft", "encoded", "range", "sparse", "adapted"),
        doc="""
        Distance to which ``x`` may leave the range of ``G``:

        - ``"soft"``: as far as the covariance allows, with the ``R`` above;
        - ``"encoded"``: as far, but ``z`` is the encoder's mean for ``x`` instead of the minimiser, and ``x``
          is the best image for ``z``. Instead of a descent this takes linear systems, few where ``lam`` is
          small, from one start;
        - ``"range"``: not at all, ``x = G(z)`` and ``R = 1/2 ||z||^2``;
        - ``"sparse"``: at few pixels, ``R = min_z ||x - G(z)||_1 / b + 1/2 ||z||^2`` with the mean absolute
          deviation ``b`` of the training images;
        - ``"adapted"``: ``x = G(z)``, where the weights of ``G`` adapt to each image until the residual is as
          large as the noise.""",
    )
    lam: float | str = parameter(
        default="auto",
        allowed=Real(ge=0) | OneOf("auto", "discrepancy"),
        doc="""
        Weight of ``R``. "auto" makes the minimiser the most probable image: it is 1 where the strength of the
        noise is known, and else the variance that is taken for it. "discrepancy" makes ``||A x - y||`` the
        norm of the noise, of counts ``2 D`` the number of those that are not zero, and warns where it
        cannot.""",
    )
    noise: NoiseModel | str | float | None = noise_of_squares_parameter(
        """Where the strength is unknown, 5 % of the root mean square of an image's data are taken, without
        what the level of the training images gives in them; "discrepancy" needs to know it."""
    )
    n_restarts: int = parameter(
        default=4,
        allowed=Integer(ge=1),
        doc="""
        Number of starts of ``z``: the first is the encoder's mean for the pseudo-inverse, the others are
        random; the best result is kept.""",
    )
    min_std: float | None = parameter(
        default=None,
        allowed=Real(gt=0) | Null(),
        doc="""
        Floor of each pixel's standard deviation given the pixels that follow it; without one, a pixel that
        never varies would have an infinite likelihood. None is a tenth of the standard deviation of all
        values.""",
    )
    generator: nn.Module | None = parameter(
        default=None,
        allowed=Instance(nn.Module, name="nn.Module") | Null(),
        doc="""
        Trained generator, (n, n_latent) to images, that takes the place of ``G`` as it is; it needs
        ``covariance="identity"`` and is not taken by :meth:`save`.""",
    )
    max_steps: int = max_steps_parameter(
        200, "Largest number of steps over ``z`` for each start, of each descent where one follows another."
    )
    tol: float = tol_parameter(1e-4, "Relative change of ``z`` in a step below which a start is finished.")

    _most_axes: ClassVar[int] = 2

    module_: GenerativeModel = fitted(kind="nn.Module", doc="The trained encoder and decoders.")
    dims_: tuple[int, ...] = fitted(
        kind="tuple of int",
        allowed=Elements(Integer(ge=1), name="int"),
        doc="Shape of the images, to which the decoders are tied.",
    )
    shape_: tuple[int, int, int] = fitted(
        kind="tuple of int",
        allowed=Elements(Integer(ge=1), name="int"),
        doc="Number of real channels, height and width of the images; a complex channel counts twice.",
    )
    real_: bool = fitted(allowed=Flag(), doc="Whether the images of ``fit`` were real.")

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise)
        if self.generator is None:
            return
        if self.covariance != "identity":
            raise ParameterError(
                'generator: one of your own has no covariance and needs covariance="identity", '
                f"got {self.covariance!r}"
            )
        if self.constraint == "encoded":
            raise ParameterError(
                'constraint: "encoded" needs an encoder, and a generator of your own has none'
            )

    # ------------------------------------------------------------------ training
    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert images is not None  # _needs
        channels = self._channels(images[:_N_MEASURED])
        self.dims_, self.real_ = tuple(images.shape[1:]), not images.is_complex()
        self.shape_ = channels.shape[1], channels.shape[2], channels.shape[3]
        window_for(self.neighbourhood, self.shape_[1:])
        if self.generator is not None:
            check_generator(self.generator, self.n_latent, channels)
        # The model is one of images, trained as if they were measured without operator and noise.
        identity = pylops.Identity(self.dims_, dtype=str(images.dtype).removeprefix("torch."))
        nothing = Problem(identity, None, as_torch(identity))
        super()._fit(Problems.one(nothing, images), images, images)

    def _learner(self) -> Self:
        """A twin that has not seen the operator either."""
        learner = super()._learner()
        learner.operator_ = None
        return learner

    def _make_module(self) -> nn.Module:
        generator = None if self.generator is None else copy_module(self.generator)
        return GenerativeModel(
            self.shape_,
            self.n_latent,
            covariance=self.covariance,
            window=window_for(self.neighbourhood, self.shape_[1:]),
            generator=generator and NormalisedGenerator(generator, self.shape_, self.level_, self.spread_),
        )

    def _phases(
        self, module: GenerativeModel, problems: Problems, images: Tensor, data: Tensor
    ) -> Iterator[Phase]:
        x = rowwise(lambda images: self._channels(images).contiguous(), images)
        if self.min_std is not None:
            module.floor.fill_(self.min_std / self.spread_)
        trainer = self.trainer.over(
            n_steps=3000,
            batch_size=_batch_size(n_pixels=x[0][0].numel()),
            lr=1e-3,
            final_lr=5e-5,
            max_grad_norm=10.0,
            validation_fraction=0.0,
        )
        if self.generator is None:
            yield Phase("mean", mean_loss, (x,), trainer)
        if module.covariance_decoder is not None:
            module.requires_grad_(False)
            module.covariance_decoder.requires_grad_(True)
            yield Phase("covariance", covariance_loss, (x,), trainer)
        module.requires_grad_(False).eval()
        measure_deviation(module, self._channel_fidelity(problems.A, images[:_N_MEASURED]))

    # ------------------------------------------------------------------ reconstruction
    def predict(
        self, Y_meas: Measured, *, out: Any = None, return_info: bool = False, return_std: bool = False
    ) -> Any:
        """Reconstruct images from measurements.

        Parameters
        ----------
        Y_meas : array-like, Tensor or Measurements of shape (n_samples, *operator.dimsd)
            Measurements; flat (n_samples, n_measurements) is accepted.
        out : array-like of shape (n_samples, *operator.dims), default=None
            Where to write the images as they come: an array, a memory map, an HDF5 data set.
        return_info : bool, default=False
            Whether to return how each image's reconstruction ended, too.
        return_std : bool, default=False
            Whether to return a standard deviation of each pixel, too: that of ``exp(-J / lam)``, which is the
            posterior with ``lam="auto"``, where ``J`` is the objective with ``G`` linear around the best
            ``z`` and ``Sigma`` held; from 64 draws.

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
            raise ValueError(
                f'return_std: only "soft" and "encoded" have a covariance of pixels, not {self.constraint!r}'
            )
        ways = GenerativeCovariancePrior._reconstructed, GenerativeCovariancePrior._reconstructed_with_std
        X_hat, solution = self._reconstructions(Y_meas, ways[return_std], out)
        std = [same_kind(solution.extra.pop("std"), X_hat)] if return_std else []
        arrays = [X_hat, *std]
        results = [*arrays, information(solution)] if return_info else arrays
        return tuple(results) if len(results) > 1 else results[0]

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        likelihood = self._fidelity(A)
        objective, latent = self._infer_latent(likelihood, A, data)
        if self.constraint == "adapted":
            solution = adapt_weights(objective, latent.x, self._noise_norm(likelihood, data), self.max_steps)
            solution = replace(solution, x=objective.fidelity.image(solution.x), extra={"lam": objective.lam})
            return self._with_gain(likelihood, solution)
        return self._with_gain(likelihood, _with_image(objective, latent))

    def _reconstructed_with_std(self, A: LinearMap, data: Tensor) -> Solution:
        likelihood = self._fidelity(A)
        objective, latent = self._infer_latent(likelihood, A, self._normalised(A, data))
        solution, (std, converged) = _with_image(objective, latent), posterior_std(objective, latent.x)
        solution = self._restored(self._with_gain(likelihood, solution))
        solution.extra["std"] = self.spread_ * objective.fidelity.image(std).abs()
        return replace(solution, converged=solution.converged & converged)

    def _channel_fidelity(self, A: LinearMap, data: Tensor, weights: Tensor | None = None) -> ChannelFidelity:
        root = None if weights is None else weights.sqrt()
        data = data if root is None else root * data
        return ChannelFidelity(A, data, self.shape_, self.channel_axis, real=self.real_, root=root)

    def _infer_latent(
        self, likelihood: NormalisedFidelity, A: LinearMap, data: Tensor
    ) -> tuple[LatentObjective, Solution]:
        _check_size(A, self.dims_)
        model = copy.deepcopy(self.module_).to(data.device, data.dtype.to_real())
        normed, y, _ = without_gain(likelihood.A, likelihood.weighted_data(data))
        fidelity = self._channel_fidelity(normed, y, likelihood.weights(data))
        first = fidelity.channels(data if A.identity else analytic_inverse(A, data))
        return infer_latent(
            model,
            fidelity,
            model.starts(first, 1 if self.constraint == "encoded" else self.n_restarts),
            constraint=self.constraint,
            lam=self.lam if isinstance(self.lam, str) else self.lam / likelihood.unit,
            noise_std=self._noise_std(likelihood, data),
            noise_norm=self._noise_norm(likelihood, data),
            max_steps=self.max_steps,
            tol=self.tol,
        )

    def _noise_std(self, likelihood: NormalisedFidelity, data: Tensor) -> Tensor:
        """Standard deviation of the noise in normalised data, those of an operator of norm 1."""
        normed, y, _ = without_gain(likelihood.A, likelihood.weighted_data(data))
        known = self._noise_model.known
        return noise_level(normed, y, deviation(1 / math.sqrt(likelihood.unit), y) if known else None)

    def _noise_norm(self, likelihood: NormalisedFidelity, data: Tensor) -> Tensor:
        """Expected norm of that noise in the data of each image."""
        return likelihood.n_expected(data).sqrt() * self._noise_std(likelihood, data)

    def _with_gain(self, likelihood: NormalisedFidelity, solution: Solution) -> Solution:
        """Objective and weights in the unit of the fidelity, the objective but for the spread of images."""
        unit = likelihood.unit
        lam, objective = (v.double() * unit for v in (solution.extra["lam"], solution.objective))
        return replace(solution, objective=objective / self.spread_**2, extra={"lam": lam})

    # ------------------------------------------------------------------ what the model says of images
    def sample(
        self, n_samples: int = 1, *, random_state: int | np.random.RandomState | None = None
    ) -> NDArray[Any]:
        """Draw images from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of images.
        random_state : int, RandomState or None, default=None
            Seed; None draws other images each time.

        Returns
        -------
        ndarray of shape (n_samples, *dims_)
            The images, with the noise that the covariance describes.

        Raises
        ------
        ValueError
            If ``n_samples`` is not a whole number >= 1.
        """
        survive_fork()
        check_is_fitted(self)
        if not Integer(ge=1).allows(n_samples):
            raise ParameterError(f"n_samples: expected a whole number >= 1, got {n_samples!r}")
        with standard_defaults():
            drawn = copy.deepcopy(self.module_).to("cpu").sample(n_samples, seed_of(random_state))
            return np.asarray(self._normalisation.restored(self._as_images(drawn)).numpy())

    def score_samples(self, X_true: ArrayLike | Tensor) -> Any:
        """Evidence bound: a lower bound on the log-density of images.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *dims_)
            Images.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            The bound in nats, with the mean over 16 draws of ``z``.

        Raises
        ------
        ValueError
            If the generator is one of your own, which has no encoder.
        """
        bound = self._evaluate(evidence_bound, X_true)
        # The density of x is that of (x - level) / spread, over the spread in each value.
        return same_kind(bound - math.prod(self.shape_) * math.log(self.spread_), X_true)

    def covariance_row(self, X_true: ArrayLike | Tensor, pixel: tuple[int, ...]) -> Any:
        """Learned covariance of one pixel with all others, near given images.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *dims_)
            Images; each is encoded.
        pixel : tuple of int
            Place of the pixel: (row, column), or (channel, row, column), the first channel by default.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, *dims_)
            Positive and negative covariances, for complex images those of the real part.

        Raises
        ------
        ValueError
            If the generator is one of your own, which has no encoder.
        IndexError
            If there is no such pixel.
        """
        check_is_fitted(self)
        place = _among_channels(pixel, self.shape_, real=self.real_)

        def row(model: GenerativeModel, x: Tensor) -> Tensor:
            return model.gaussian(model.encode(x)[0]).covariance_row(place)

        normalised = self._as_images(self._evaluate(row, X_true)).real
        return same_kind(self.spread_**2 * normalised, X_true)

    @torch.no_grad()
    def _evaluate(
        self, function: Callable[[GenerativeModel, Tensor], Tensor], X_true: ArrayLike | Tensor
    ) -> Tensor:
        """What the model says of images, a part of them at a time."""
        survive_fork()
        check_is_fitted(self)
        if self.module_.encoder is None:
            raise ValueError("generator: one of your own has no encoder, which finds the latent variables")
        with standard_defaults():
            batch = as_batch(X_true, "X_true", resolve_device(self.device))
            images = per_sample(batch, self.dims_, "X_true", "dims_")
            if self.real_ and images.is_complex():
                raise ValueError("X_true: expected real images like those of fit, got complex ones")
            images = self._normalisation.of_images(images)
            x = self._channels(images if self.real_ else images.to(images.dtype.to_complex()))
            model = copy.deepcopy(self.module_).to(x)
            return torch.cat([function(model, part) for part in x.split(max(1, _AT_ONCE // x[0].numel()))])

    def _as_images(self, channels: Tensor) -> Tensor:
        dtype = channels.dtype if self.real_ else channels.dtype.to_complex()
        return from_channels(
            channels, torch.empty(len(channels), *self.dims_, dtype=dtype), self.channel_axis
        )


def _batch_size(n_pixels: int) -> int:
    """Number of images in one step of the method's own training."""
    return min(_BATCH_SIZE, max(_MIN_BATCH_SIZE, _BATCH_SIZE * _SMALL_IMAGE // n_pixels))


def _with_image(objective: LatentObjective, latent: Solution) -> Solution:
    """The solution for the image in place of the latent variables."""
    x, _, converged = objective.best_image(latent.x)
    return replace(
        latent,
        x=objective.fidelity.image(x),
        converged=latent.converged & converged,
        extra={"lam": objective.lam},
    )


def _check_size(A: LinearMap, dims: tuple[int, ...]) -> None:
    """Refuse an operator whose images have another size than those of the training."""
    if A.dims != dims and A.dims != (math.prod(dims),) and dims != (math.prod(A.dims),):
        raise ValueError(
            f"the decoders were trained for images of shape {dims} and the operator takes {A.dims}: fit "
            "again with images of that size"
        )


def _among_channels(
    pixel: tuple[int, ...], shape: tuple[int, int, int], *, real: bool
) -> tuple[int, int, int]:
    """Place of a pixel among real channels; a complex channel is two of them, the real part first."""
    n_parts = 1 if real else 2
    size = shape[0] // n_parts, *shape[1:]
    place = (0,) * (3 - len(pixel)) + tuple(pixel)
    if len(place) != 3 or any(not -n <= i < n for i, n in zip(place, size, strict=True)):
        raise IndexError(
            f"pixel: expected (row, column) or (channel, row, column) within {size}, got {pixel}"
        )
    channel, row, column = (i % n for i, n in zip(place, size, strict=True))
    return n_parts * channel, row, column
