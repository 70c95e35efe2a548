"""What torch does where nobody says: precision, device and random numbers, for one thread only.

``torch.manual_seed``, ``torch.set_default_dtype`` and ``torch.random.fork_rng`` act on the whole process: a
fit in one thread would disturb another one, and the user's own random numbers. The modes of torch used here
are local to the thread that enters them.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[..., Any]
Module = TypeVar("Module", bound=nn.Module)
RandomState = int | np.random.Generator | np.random.RandomState | None

_STANDARD = torch.float32


def standard_defaults() -> AbstractContextManager[Any]:
    """Single precision and the CPU for what is made without saying, whatever the user has set.

    Nothing is entered where these are the defaults already: the mode costs 3 microseconds a call.
    """
    if torch.get_default_dtype() == _STANDARD and torch.get_default_device() == torch.device("cpu"):
        return nullcontext()
    return _Defaults(None)


class _Defaults(TorchFunctionMode):
    """Fills in precision and device, and lets random functions draw from ``draws``."""

    def __init__(self, draws: _Draws | None) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        standard = torch.get_default_dtype() == _STANDARD
        if standard and func not in _CONCERNED:  # nearly always
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if func in _FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = args[0].device if args and isinstance(args[0], Tensor) else "cpu"
        if func in _OF_FLOATS and kwargs.get("dtype") is None:
            kwargs["dtype"] = _STANDARD
        if self.draws is not None and func in _RANDOM:
            with self.draws:
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if standard or kwargs.get("dtype") is not None:
            return result
        return _in_standard_precision(func, (*args, *kwargs.values()), result)


class seeded(_Defaults):
    """Within it, random numbers of this thread come from a generator of its own, and defaults are standard.

    They are those that ``torch.manual_seed(seed)`` would give, and no global generator is read or moved, also
    by modules that draw without asking for a generator, such as ``nn.Dropout`` and ``nn.init``.

    Parameters
    ----------
    seed : int
        Seed of the numbers.
    """

    draws: _Draws

    def __init__(self, seed: int) -> None:
        super().__init__(_Draws(seed))

    @contextmanager
    def restarted(self, seed: int) -> Iterator[None]:
        """Draw from a fresh generator for a while, and then go on as if nothing had been drawn."""
        before, self.draws = self.draws, _Draws(seed)
        try:
            yield
        finally:
            self.draws = before

    @contextmanager
    def of_part(self, part: slice, n: int) -> Iterator[None]:
        """Give each row of a part of ``n`` rows, which is worked on meanwhile, the numbers that it has there.

        These are the numbers of tensors with one entry on the first axis for each row, unless their
        distribution depends on the rows. All ``n`` are drawn.
        """
        self.draws.part = (part, n) if (part.start, part.stop) != (0, n) else None
        try:
            yield
        finally:
            self.draws.part = None

    def state_dict(self) -> dict[str, Tensor]:
        """The states of the generators, by device."""
        return {device: generator.get_state() for device, generator in self.draws.generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from states that :meth:`state_dict` gave."""
        for device, value in state.items():
            self.draws.generator(torch.device(device)).set_state(value)


def _in_standard_precision(func: Function, args: tuple[Any, ...], result: Any) -> Any:
    """What came of whole numbers or of Python's in the user's default precision, in single precision."""
    if func in _CONVERSIONS or not isinstance(result, Tensor) or result.requires_grad:
        return result
    # Functions such as torch.cat take their tensors in a list.
    given = [a for one in args for a in (one if isinstance(one, (list, tuple)) else [one])]
    precise = [a for a in given if isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex())]
    typed = func in _INFERRED and args and hasattr(args[0], "dtype")
    if precise or typed or result.dtype.to_real() != torch.get_default_dtype():
        return result
    return result.to(torch.complex64 if result.is_complex() else _STANDARD)


class _Draws(TorchDispatchMode):
    """Gives every random operation of the dispatcher a generator, unless it has one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self.generators: dict[str, torch.Generator] = {}
        self.part: tuple[slice, int] | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of a device, made when it is first needed."""
        name = device.type
        if name not in self.generators:
            self.generators[name] = torch.Generator(device).manual_seed(self._seed)
        return self.generators[name]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = [a for a in (*args, kwargs.get("generator")) if isinstance(a, torch.Generator)]
        if given or func.overloadpacket not in _KERNELS:
            return func(*args, **kwargs)
        device = torch.device(kwargs.get("device") or getattr(args[0], "device", "cpu") if args else "cpu")
        if self.part is not None:
            return _of_part(*self.part, func, args, kwargs, self.generator(device))
        return _drawn(func, args, kwargs, self.generator(device))


def _drawn(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], generator: torch.Generator) -> Any:
    """What a random operation draws from a generator."""
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func(*args, **kwargs, generator=generator)
    if func.overloadpacket in _LIKE:
        return _LIKE[func.overloadpacket](torch.empty_like(args[0], **kwargs), generator)
    return func.overloadpacket(*args, **kwargs, generator=generator)


def _of_part(
    part: slice, n: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], generator: torch.Generator
) -> Any:
    """The part of what a random operation draws for ``n`` rows, where it draws for the rows of the part."""
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("size") if "size" in names else 0
    rows = args[place]
    shape = list(rows.shape if isinstance(rows, Tensor) else rows)
    others = [a for k, a in enumerate(args) if k != place]
    depends = func.overloadpacket in _DEPENDENT or any(isinstance(a, Tensor) for a in others)
    if depends or shape[:1] != [part.stop - part.start]:
        return _drawn(func, args, kwargs, generator)
    whole = _more(rows, n) if isinstance(rows, Tensor) else [n, *shape[1:]]
    drawn = _drawn(func, (*args[:place], whole, *args[place + 1 :]), kwargs, generator)[part]
    in_place = func.overloadpacket.__name__.endswith("_")
    return rows.copy_(drawn) if in_place else drawn


def _more(rows: Tensor, n: int) -> Tensor:
    """An empty tensor of ``n`` rows in the order of memory of ``rows``, in which random numbers come."""
    one = torch.empty_like(rows[0])
    return rows.new_empty_strided((n, *one.shape), (one.numel(), *one.stride()))


def _find(owner: Any, names: str) -> set[Function]:
    """Functions by their names, those that this release of torch has."""
    return {getattr(owner, name) for name in names.split() if hasattr(owner, name)}


_FLOAT_FACTORIES = (
    "zeros ones empty eye linspace logspace rand randn hann_window hamming_window blackman_window"
)
_OF_FLOATS = _find(torch, _FLOAT_FACTORIES) | _find(torch.fft, "fftfreq rfftfreq")
_INFERRED = _find(torch, "tensor as_tensor asarray full arange scalar_tensor")
_FACTORIES = _OF_FLOATS | _INFERRED | _find(torch, "randint randperm")
_CONVERSIONS = _find(torch.Tensor, "to double float half type type_as detach clone requires_grad_ copy_")
_RANDOM = (
    _find(torch, "rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial")
    | _find(torch, "poisson binomial dropout alpha_dropout feature_dropout feature_alpha_dropout rrelu")
    | _find(torch.Tensor, "uniform_ normal_ bernoulli_ exponential_ random_ cauchy_ geometric_ log_normal_")
    | _find(torch.Tensor, "bernoulli multinomial")
    | _find(F, "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout rrelu rrelu_")
    | _find(F, "gumbel_softmax scaled_dot_product_attention multi_head_attention_forward")
    | _find(F, "fractional_max_pool2d fractional_max_pool3d")
    | _find(nn.init, "uniform_ normal_ kaiming_uniform_ kaiming_normal_ xavier_uniform_ xavier_normal_")
    | _find(nn.init, "trunc_normal_ orthogonal_ sparse_")
)
_CONCERNED = _FACTORIES | _RANDOM
_KERNELS = _find(
    torch.ops.aten,
    "rand randn randint randperm rand_like randn_like normal bernoulli multinomial poisson binomial uniform_ "
    "normal_ bernoulli_ exponential_ random_ cauchy_ geometric_ log_normal_ rrelu_with_noise",
)
# What they draw depends on the values of a tensor.
_DEPENDENT = _find(torch.ops.aten, "normal bernoulli multinomial poisson binomial rrelu_with_noise randperm")
_LIKE: dict[Any, Callable[[Tensor, torch.Generator], Tensor]] = {
    torch.ops.aten.rand_like: lambda x, generator: x.uniform_(generator=generator),
    torch.ops.aten.randn_like: lambda x, generator: x.normal_(generator=generator),
}


# ---------------------------------------------------------------------- copies of what users hand over
def copy_module(module: Module) -> Module:
    """A deep copy of a module, also of one that keeps activations of an earlier call.

    torch refuses to copy tensors with a history; in the copy they are constants.
    """
    with _WithoutHistory():
        return copy.deepcopy(module)


class _WithoutHistory(TorchFunctionMode):
    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------- forked processes
def survive_fork() -> None:
    """Compute with one thread in a process that was forked: torch's threads stay behind in its parent.

    Waiting for them would never end.
    """
    if _forked and torch.get_num_threads() > 1:
        warnings.warn(
            "this process was forked, and torch's threads stayed in its parent: it computes with one thread; "
            'start processes with joblib\'s "loky" or multiprocessing\'s "spawn"',
            stacklevel=3,
        )
        torch.set_num_threads(1)


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, where processes are not forked
    os.register_at_fork(after_in_child=_note_fork)


def numpy_generator(random_state: RandomState) -> np.random.Generator:
    """Turn a seed or a source of randomness into a generator; the global one is left alone."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**32, size=4, dtype=np.uint32))
    return np.random.default_rng(random_state)
