"""What a method is given, and how measurements become problems: operators, noise, masks, sizes."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pylops
from numpy.typing import NDArray
from torch import Tensor

from skinverse._arrays import (
    Rows,
    check_complete,
    check_finite,
    in_parts,
    masked,
    missing,
    to_batch,
    where_measured,
)
from skinverse._measurements import Measurements
from skinverse._parameters import (
    Constraint,
    Instance,
    Integer,
    Null,
    OneOf,
    Parametrized,
    Real,
    fitted,
    parameter,
)
from skinverse._tensors import spatial_axes
from skinverse.estimators._validation import (
    assigned,
    check_channel_axis,
    check_dims,
    check_operator,
    check_spacing,
    per_sample,
)
from skinverse.noise import NoiseModel, noise_model
from skinverse.operators import LinearMap, as_torch, check_is_operator, with_parameters
from skinverse.solvers import Solution

# What to do about bad measurements.
_TO_MASK = "; what was not measured is masked, as np.ma.masked_invalid(Y_meas) does"


class _Device(Constraint):
    """Where to compute."""

    kind = '{"auto", "cpu", "cuda", "cuda:0", ...}'
    expected = '"auto", "cpu" or "cuda"'

    def allows(self, value: Any) -> bool:
        return str(value).split(":")[0] in ("auto", "cpu", "cuda")


class Group(NamedTuple):
    """Images that were measured by one operator under one noise, and the method that knows both."""

    members: NDArray[np.intp]
    operator: pylops.LinearOperator
    method: Reader
    A: LinearMap
    rows: Rows


class Reader(Parametrized, ABC):
    """What every method is given besides images and measurements, and the problems that these make."""

    # What `fit` needs, and whether images and measurements must come in pairs.
    _needs: ClassVar[tuple[str, ...]] = ()
    # Whether `predict`, too, needs all measurements, each in its place.
    _complete: ClassVar[bool] = False
    # Whether what is learned belongs to one operator, whose parameters cannot differ from image to image.
    _one_operator: ClassVar[bool] = False
    # What is known of the noise, where a method makes it a parameter.
    noise: Any = None
    # Distances of pixels, where a method makes them a parameter.
    spacing: Any = None

    operator: pylops.LinearOperator | Callable[..., Any] | None = parameter(
        default=None,
        kw_only=False,
        kind="pylops.LinearOperator, callable or None",
        doc="""
        The operator ``A``; None is the identity (denoising). For images of several sizes a function that is
        given the shape of one measurement and returns the operator. Clones share it.""",
    )

    check_operator: str | float = parameter(
        default="error",
        allowed=OneOf("error", "warn") | Real(gt=0),
        doc="""
        What to do where the operator fails its dot test: projectors on graphics processors are often not
        exact adjoints of one another. A number is the largest relative error that is allowed, in place of
        1e-4 in single and 1e-8 in double precision.""",
    )

    channel_axis: int | None = parameter(
        default=None,
        allowed=Integer() | Null(),
        doc="""
        Which axis of one image holds channels, such as colours: 0 of (C, H, W), -1 of (H, W, C). None: every
        axis is space, and images of three axes are volumes. Methods that treat each value by itself do not
        ask.""",
    )

    device: str = parameter(
        default="auto", allowed=_Device(), doc='Where to compute; "auto" is CUDA where there is a device.'
    )

    operator_: pylops.LinearOperator | None = fitted(
        kind="pylops.LinearOperator or None",
        allowed=Instance(pylops.LinearOperator, name="pylops.LinearOperator") | Null(),
        doc="The operator that ``fit`` has seen; None while ``operator=None`` and no sizes have been seen.",
    )

    @abstractmethod
    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        """Reconstruct a batch, (n, *A.dimsd) -> (n, *A.dims)."""

    @property
    def _noise_model(self) -> NoiseModel:
        """The noise of the measurements."""
        return noise_model(self.noise)

    def _check_images(self, dims: tuple[int, ...]) -> None:
        """Refuse images of another layout than the method can treat."""
        check_channel_axis(self.channel_axis, dims)
        check_spacing(self.spacing, spatial_axes(len(dims), self.channel_axis))

    def _spatial_axes(self, A: LinearMap) -> tuple[int, ...]:
        """The axes of images that are space, counted from the end."""
        return spatial_axes(len(A.dims), self.channel_axis)

    def _operator_for(self, images: Tensor | None, data: Tensor | None) -> pylops.LinearOperator | None:
        """The operator, or the identity of the sizes seen."""
        seen = data if data is not None else images
        if self._of_any_size:
            return None if seen is None else self._operator_of_size(tuple(seen.shape[1:]))
        if self.operator is not None or seen is None:
            return self.operator
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

    @property
    def _of_any_size(self) -> bool:
        """Whether the operator is a function of the size of data."""
        return callable(self.operator) and not isinstance(self.operator, pylops.LinearOperator)

    def _operator_of_size(self, shape: tuple[int, ...]) -> pylops.LinearOperator:
        """What the function ``operator`` gives for one measurement of this shape."""
        make: Any = self.operator
        made = make(shape)
        check_is_operator(made)
        if tuple(made.dimsd) != shape:
            raise ValueError(
                f"operator: expected a function that is given the shape of one measurement and returns its "
                f"operator, got for {shape} one of data {tuple(made.dimsd)}"
            )
        return made

    def _operator_of(self, rows: Rows) -> pylops.LinearOperator:
        """The checked operator of measurements."""
        self._check_axes(tuple(rows.shape))
        operator: Any = self._operator_for(None, to_batch(rows[:1]))
        if operator is not self.operator_:
            check_operator(operator, self.check_operator)
        self._check_images(tuple(operator.dims))
        self._noise_model.check_shape(tuple(operator.dimsd), "noise__")
        return operator

    def _images_of(self, operator: Any, images: Any) -> Any:
        """The images in the shape of the operator, which is checked; the identity of unknown size is None."""
        if operator is None:
            return images
        check_operator(operator, self.check_operator)
        self._check_images(tuple(operator.dims))
        self._noise_model.check_shape(tuple(operator.dimsd), "noise__")
        return None if images is None else per_sample(images, operator.dims, "X_true", "operator.dims")

    def _check_axes(self, shape: tuple[int, ...]) -> None:
        """Refuse to guess, where there is no operator, whether this is one image or several signals."""
        if self.operator is not None:
            return
        known: Any = getattr(self, "operator_", None)
        n_axes = len(shape) - (1 if self.channel_axis is None else 2)
        if known is None and n_axes == 1:
            expected = "" if self.channel_axis is None else " and an axis of channels"
            raise ValueError(
                f"Y_meas: expected images, (n_samples, height, width){expected}, got shape {shape} "
                "and operator=None: one image is Y_meas[None]; for signals pass pylops.Identity(dims) or "
                "signals in fit"
            )
        if known is not None and shape[1:] != (known.shape[0],) and len(shape) <= len(known.dimsd):
            expected = ", ".join(map(str, known.dimsd))
            alone = ": a single sample is Y_meas[None]" if len(shape) == len(known.dimsd) else ""
            raise ValueError(
                f"Y_meas: expected as many axes as in fit, (n_samples, {expected}), got shape {shape}{alone}"
            )

    def _problems(
        self, operator: pylops.LinearOperator, measured: Measurements, rows: Rows, numbers: NDArray[np.intp]
    ) -> Iterator[Group]:
        """The measurements, of these numbers, in parts of which each has one operator and one noise."""
        for members, values in measured.alike():
            try:
                method, own = self._with_values(values, operator)
            except ValueError as error:
                raise ValueError(f"Y_meas, row {numbers[members[0]]}: {error}") from error
            A = as_torch(own)
            chosen = rows if len(members) == len(rows) else rows[members]
            known = method._measurements(method._masked(chosen), A, numbers[members])
            yield Group(members, own, method, A, known)

    def _with_values(
        self, values: dict[str, Any], operator: pylops.LinearOperator
    ) -> tuple[Self, pylops.LinearOperator]:
        """The method and its operator for images with these values of parameters."""
        if not values and not self._of_any_size:
            return self, operator
        of_operator, of_noise = assigned(values, operator, self._noise_model)
        if of_operator and self._one_operator:
            raise ValueError(
                f"{type(self).__name__}: what was learned belongs to one operator, got "
                f"{', '.join(of_operator)} for each image"
            )
        twin, own = copy.copy(self), with_parameters(operator, of_operator) if of_operator else operator
        twin.operator = twin.operator_ = own
        if of_noise:
            twin.noise = self._noise_model.with_parameters(of_noise)
            twin.noise.check_parameters()
            twin.check_parameters()
            twin.noise.check_shape(tuple(own.dimsd))
        return twin, own

    def _masked(self, rows: Rows) -> Rows:
        """The measurements, those of weight zero masked."""
        unmeasured = self._noise_model.unmeasured()
        if unmeasured is None or unmeasured.size != math.prod(rows.shape[1:]):  # which is refused later
            return rows
        return masked(rows, unmeasured)

    def _measurements(self, rows: Rows, A: LinearMap, numbers: NDArray[np.intp]) -> Rows:
        """Finite measurements of the operator's shape, zero where it measures nothing."""
        check_dims(tuple(rows.shape), A.dimsd, "Y_meas", "operator.dimsd")
        known = where_measured(rows, A.measured)
        check_finite(known, "Y_meas", _TO_MASK, numbers=numbers)
        if self._noise_model.counted:
            for part in in_parts(known):
                self._noise_model.check_data(to_batch(part))
        return known

    def _check_measured(self, rows: Rows, A: LinearMap) -> None:
        """Refuse samples without a measurement, and incomplete ones where a part needs all of them."""
        if any(getattr(part, "_complete", False) for part in (self, *self.get_params(deep=True).values())):
            check_complete(rows, "Y_meas", f": {type(self).__name__} needs each measurement in its place")
        masks = missing(rows)
        if masks is None:
            return
        n_empty = int((masks.reshape(len(masks), -1).sum(1) == A.n_measured).sum())
        if n_empty:
            raise ValueError(
                f"Y_meas: expected measurements, got {n_empty} of {len(masks)} samples with all values masked"
            )

    def _restricted_to(self, kept: NDArray[np.intp], dimsd: tuple[int, ...]) -> Self:
        """The method and those in it for a part of the measurements ``dimsd``, with that of the noise."""
        twin = copy.copy(self)
        twin.noise = self._noise_model.restricted(kept)
        for name, value in vars(self).items():
            restricted_to = getattr(value, "_restricted_to", None)
            if restricted_to is not None:
                setattr(twin, name, restricted_to(kept, dimsd))
        return twin
