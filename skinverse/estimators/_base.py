"""The two base classes: the public contract is written once, here."""

from __future__ import annotations

import copy
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pylops
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import Tensor, nn

from skinverse._batch import reuse_freed_memory
from skinverse.estimators._base_training import seeded_module, train
from skinverse.estimators._hashing import fingerprint, key
from skinverse.estimators._validation import (
    as_batch,
    check_operator,
    information,
    per_sample,
    resolve_device,
    same_kind,
    seed_of,
)
from skinverse.metrics import psnr
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution
from skinverse.training import Trainer

if TYPE_CHECKING:
    from skinverse.estimators._regressor import ReconstructionRegressor

Reconstruct = Callable[[LinearMap, Tensor], Solution]
# Numbers in each variable of a solver: what a processor's caches hold; a GPU wants more work at a time.
_CHUNK = {"cpu": 2**20, "cuda": 2**24}

# What to use for what does not come in pairs.
_INSTEAD = (
    "; AdversarialRegularizer learns from images and measurements that are no pairs, "
    "GenerativeCovariancePrior from images alone"
)


class BaseReconstructor(BaseEstimator, ABC):
    """A reconstruction method: measurements in, images out.

    A method gives :meth:`_reconstruct` and, if it learns or prepares anything, :meth:`_fit`. Both receive the
    operator as a batched torch map ``A`` and tensors on the right device.

    Attributes
    ----------
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``; None while ``operator=None`` and no sizes have been seen.
    """

    # What `fit` needs, and whether images and measurements must come in pairs.
    _needs: ClassVar[tuple[str, ...]] = ()
    _paired: ClassVar[bool] = True
    # Private attributes that `predict` needs, saved with the public ones; parameters that clones share.
    _saved: ClassVar[tuple[str, ...]] = ()
    _shared: ClassVar[tuple[str, ...]] = ("operator",)
    # How many numbers a step holds at once for each one of an image.
    _load: ClassVar[int] = 1

    __metadata_request__fit: ClassVar[dict[str, str]] = {"X_true": UNUSED, "Y_meas": UNUSED}
    __metadata_request__predict: ClassVar[dict[str, str]] = {"Y_meas": UNUSED, "return_info": UNUSED}
    __metadata_request__score: ClassVar[dict[str, str]] = {"X_true": UNUSED, "Y_meas": UNUSED}

    operator: pylops.LinearOperator | None
    device: str

    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Self:
        """Learn what the method learns; images first, measurements second.

        scikit-learn's own tools call ``fit(X, y)`` and later ``predict(X)``. Here the *second* argument
        is what ``predict`` takes: searches that use ``score`` (``GridSearchCV``, ``cross_val_score``)
        work as they are; for ``Pipeline``, ``cross_val_predict`` and string scorers use
        :meth:`as_regressor`.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *operator.dims), optional
            True images; flat (n_samples, n_pixels) is accepted. Only needed by methods that learn.
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd), optional
            Measurements; flat (n_samples, n_measurements) is accepted.

        Returns
        -------
        object
            The fitted estimator.

        Raises
        ------
        ValueError
            If something needed is missing, or an array is empty, not finite or of the wrong shape, or the
            operator's adjoint is wrong.
        TypeError
            If the operator is no ``pylops.LinearOperator`` or an array is not numeric.
        """
        self._check_given(X_true, Y_meas)
        device = resolve_device(self.device)
        images = None if X_true is None else as_batch(X_true, "X_true", device)
        data = None if Y_meas is None else as_batch(Y_meas, "Y_meas", device)
        operator = self._operator_for(images, data)
        if operator is not None:
            check_operator(operator)
            images = None if images is None else per_sample(images, operator.dims, "X_true", "operator.dims")
            data = None if data is None else per_sample(data, operator.dimsd, "Y_meas", "operator.dimsd")
        self._check_pairs(images, data)
        self.operator_ = operator
        self._fit(None if operator is None else as_torch(operator), images, data)
        return self

    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        """Reconstruct images from measurements.

        Parameters
        ----------
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd)
            Measurements; flat (n_samples, n_measurements) is accepted.
        return_info : bool, default=False
            Also return how each image's reconstruction ended.

        Returns
        -------
        X_hat : ndarray or Tensor of shape (n_samples, *operator.dims)
            The images, of the kind and precision of ``Y_meas``.
        info : Bunch, only if ``return_info``
            Arrays of shape (n_samples,): ``n_steps``, ``converged``, ``residual`` (what the stopping rule
            compared with its tolerance) and ``objective``, and what else the method reports.

        Raises
        ------
        ValueError
            If ``Y_meas`` is empty, not finite or of the wrong shape.

        Warns
        -----
        ConvergenceWarning
            If images stopped before the tolerance was met; the message counts them.
        """
        found = self._predicted(Y_meas, self._reconstruct)
        X_hat = same_kind(found.x, Y_meas)
        return (X_hat, information(found)) if return_info else X_hat

    def score(self, X_true: Any, Y_meas: Any) -> float:
        """Mean peak signal-to-noise ratio of the reconstructions, in dB.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *operator.dims)
            True images.
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd)
            Their measurements.

        Returns
        -------
        float
            Mean over images of :func:`skinverse.metrics.psnr`; larger is better.
        """
        X_hat = self.predict(Y_meas)
        images = per_sample(
            as_batch(X_true, "X_true", torch.device("cpu")),
            tuple(X_hat.shape[1:]),
            "X_true",
            "the reconstructions",
        )
        return float(np.mean(psnr(images, X_hat)))

    def as_regressor(self) -> ReconstructionRegressor:
        """The same method in scikit-learn's order: ``fit(Y_meas, X_true)``, flat arrays in and out.

        Returns
        -------
        ReconstructionRegressor
            An unfitted regressor around a clone of this estimator.
        """
        from skinverse.estimators._regressor import ReconstructionRegressor

        return ReconstructionRegressor(clone(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the estimator to one file, to be read by :func:`skinverse.load`.

        Parameters
        ----------
        path : path-like
            The file, by convention ``*.skinverse``; overwritten if it exists.
        """
        from skinverse.persistence import save

        save(self, path)

    # ------------------------------------------------------------------ hooks
    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:  # noqa: B027
        """Learn or prepare; by default there is nothing to do."""

    @abstractmethod
    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        """Reconstruct a batch, (n, *A.dimsd) -> (n, *A.dims)."""

    # ------------------------------------------------------------------ private
    def _check_given(self, X_true: Any, Y_meas: Any) -> None:
        given = {"X_true": X_true, "Y_meas": Y_meas}
        for name in self._needs:
            if given[name] is None:
                others = " and ".join(self._needs)
                instead = _INSTEAD if len(self._needs) > 1 else ""
                raise ValueError(
                    f"{type(self).__name__}.fit learns from {others}, but {name} is missing{instead}"
                )

    def _check_pairs(self, images: Tensor | None, data: Tensor | None) -> None:
        if self._paired and images is not None and data is not None and len(images) != len(data):
            raise ValueError(
                f"{type(self).__name__}.fit expects pairs, "
                f"but X_true holds {len(images)} images and Y_meas {len(data)} measurements{_INSTEAD}"
            )

    def _operator_for(self, images: Tensor | None, data: Tensor | None) -> pylops.LinearOperator | None:
        """The operator, or the identity of the sizes seen."""
        if self.operator is not None:
            return self.operator
        seen = data if data is not None else images
        if seen is None:
            return None
        if images is not None and images[0].numel() != seen[0].numel():
            raise ValueError(
                "operator=None is denoising and expects images and measurements of one shape, but got "
                f"{tuple(images.shape[1:])} and {tuple(seen.shape[1:])}: pass the operator"
            )
        dims = tuple((seen if images is None else images).shape[1:])
        known: Any = getattr(self, "operator_", None)
        if type(known) is pylops.Identity and (dims == known.dims or dims == (known.shape[1],)):
            return known
        return pylops.Identity(dims, dtype=str(seen.dtype).removeprefix("torch."))

    def _predicted(self, Y_meas: Any, reconstruct: Reconstruct) -> Solution:
        """What ``reconstruct`` makes of checked measurements; a warning where it did not converge."""
        check_is_fitted(self)
        data = as_batch(Y_meas, "Y_meas", resolve_device(self.device))
        operator: Any = self._operator_for(None, data)
        if operator is not self.operator_:
            check_operator(operator)
        data = per_sample(data, operator.dimsd, "Y_meas", "operator.dimsd")
        solution = self._reconstruct_in_chunks(as_torch(operator), data, reconstruct)
        self._warn(solution)
        return solution

    def _reconstruct_in_chunks(self, A: LinearMap, data: Tensor, reconstruct: Reconstruct) -> Solution:
        """No image depends on its companions, so a large batch may be cut to bound the memory."""
        reuse_freed_memory()
        numbers = self._load * max(int(np.prod(A.dims)), int(np.prod(A.dimsd)))
        size = max(1, _CHUNK[data.device.type] // numbers)
        return Solution.concatenate([reconstruct(A, part) for part in data.split(size)])

    def _warn(self, solution: Solution) -> None:
        failed = int((~solution.converged).sum())
        if failed:
            warnings.warn(
                f"{type(self).__name__}: {failed} of {len(solution.x)} images did not converge "
                f"(largest residual {float(solution.residual.max()):.1e}): raise max_steps or tol",
                ConvergenceWarning,
                stacklevel=4,
            )

    def __sklearn_clone__(self) -> Self:
        """Clones share the operator: it may be hundreds of megabytes and is never written to."""
        params, shared = self.get_params(deep=False), self._shared
        twin = type(self)(**{k: v if k in shared else clone(v, safe=False) for k, v in params.items()})
        for name in ("_metadata_request", "_skl_callbacks"):
            if hasattr(self, name):
                setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.target_tags.required = "Y_meas" in self._needs
        return tags


class LearnedReconstructor(BaseReconstructor):
    """A reconstruction method with a trained torch module: seed, device, trainer, cache and history.

    A method gives :meth:`_make_module`, :meth:`_reconstruct` and, unless it is the squared error,
    :meth:`_loss`; one that trains in phases gives :meth:`_train`. What is learned never depends on the
    parameters in ``_reconstruction_params``. Training is in single precision.

    Attributes
    ----------
    module_ : nn.Module
        The trained module.
    history_ : list of dict
        One entry per epoch: losses, held-out PSNR, seconds.
    """

    _needs: ClassVar[tuple[str, ...]] = ("X_true", "Y_meas")
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("lam", "max_steps", "tol", "verbose", "device")
    # What `_make_module` has to know of the images besides the operator.
    _seen: ClassVar[tuple[str, ...]] = ()

    module_: nn.Module
    trainer: Trainer | None
    memory: Any
    warm_start: bool
    random_state: Any
    verbose: int

    @abstractmethod
    def _make_module(self) -> nn.Module:
        """The untrained module for the fitted ``operator_``."""

    def _loss(self, module: nn.Module, images: Tensor, data: Tensor) -> Tensor:
        """Loss of each image, (n,): by default the squared error of ``module(data)``."""
        return (module(data) - images).abs().square().flatten(1).sum(1)

    def _train(
        self, module: nn.Module, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        """Train the module in place and tell the history; by default in one phase."""

        def held_out_psnr(images: Tensor, data: Tensor) -> float:
            x = self._reconstruct(A, data).x
            with np.errstate(over="ignore"):  # a diverging training is the trainer's to report
                return float(np.mean(psnr(images, x))) if bool(x.isfinite().all()) else -np.inf

        trainer = self.trainer if self.trainer is not None else Trainer()
        how: dict[str, Any] = {"score": held_out_psnr, "seed": seed, "verbose": verbose}
        return trainer.train(module, self._loss, images, data, **how)

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """What the data become before anything learned comes into play."""
        return data

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        """The images as a function of the module's weights, and of ``A`` where that has parameters."""
        raise TypeError(f"{type(self).__name__} does not reconstruct differentiably in what it learned")

    def _describe(self) -> None:  # noqa: B027
        """Set the attributes that tell something of ``module_``; by default there are none."""

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert A is not None and images is not None and data is not None  # _needs
        start = self.module_.state_dict() if self.warm_start and hasattr(self, "module_") else {}
        cached = check_memory(self.memory).cache(train, ignore=["recipe", "operator", "device", "verbose"])
        recipe = self._recipe()
        weights, self.history_ = cached(
            recipe,
            key(vars(recipe) | {"method": type(recipe).__qualname__}),
            fingerprint(A),
            images.cpu().numpy(),
            data.cpu().numpy(),
            {name: value.cpu().numpy() for name, value in start.items()},
            seed_of(self.random_state),
            operator=self.operator_,
            device=images.device,
            verbose=self.verbose,
        )
        self.module_ = seeded_module(self, 0, images.device)
        self.module_.load_state_dict(weights)
        self.module_.eval()

    def _recipe(self) -> Self:
        """Leave out what does not touch the training: the key under which it is cached."""
        defaults = {name: p.default for name, p in signature(type(self)).parameters.items()}
        elsewhere = {"operator", "memory", "random_state", "warm_start"}
        untouched = (elsewhere | set(self._reconstruction_params)) & defaults.keys()
        recipe = clone(self).set_params(**{name: defaults[name] for name in untouched})
        for name in self._seen:
            setattr(recipe, name, getattr(self, name))
        return recipe
