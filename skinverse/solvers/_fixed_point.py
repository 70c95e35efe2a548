"""Fixed points of a map, image by image: Picard, Anderson and Broyden."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skinverse._batch import expand, norm
from skinverse.solvers._loop import Callback, State, iterate
from skinverse.solvers._solution import Solution

# `f(z, *given)`: a map of batches; the images in `given` belong to those in `z`.
Map = Callable[..., Tensor]
# From what is remembered, the last changes of `z` and of `g = f(z) - z`, and `g`: the next change of `z`, and
# what to remember. Everything is flat and real.
Propose = Callable[[State, Tensor, Tensor, Tensor], tuple[Tensor, State]]

FixedPointSolver = Callable[..., Solution]

# A residual so much larger than the least one, or no number, starts anew from there with half of the step.
_GROWTH = 100.0
# Ridge of Anderson's least squares, relative to the length of each column.
_RIDGE = {torch.float64: 1e-10, torch.float32: 1e-6}


def picard(
    f: Map,
    z0: Tensor,
    *,
    given: tuple[Tensor, ...] = (),
    max_steps: int = 100,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Solve ``z = f(z)`` by ``z <- f(z)``.

    Parameters
    ----------
    f : callable
        ``f(z, *given)``, batches to batches, (n, *dims) -> (n, *dims), image by image.
    z0 : Tensor of shape (n, *dims)
        Start, real or complex.
    given : tuple of Tensor of shape (n, ...), default=()
        What else ``f`` sees of each image; finished images leave it too.
    max_steps : int, default=100
        Most evaluations of ``f``.
    tol : float, default=1e-5
        An image stops when ``||f(z) - z|| < tol ||f(z)||``.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        ``f(z)`` for the ``z`` with the least ``||f(z) - z||`` met; where that grows a hundredfold or is no
        number the iteration starts anew from there, with half of the step.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import picard
    >>> picard(lambda z: z / 2 + 1, torch.zeros(1, 1)).x.round(decimals=3)
    tensor([[2.]])
    """
    return _solve(f, z0, given, _picard, {}, max_steps, tol, callback)


def anderson(
    f: Map,
    z0: Tensor,
    *,
    given: tuple[Tensor, ...] = (),
    window: int = 5,
    max_steps: int = 100,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Solve ``z = f(z)`` by Anderson's acceleration.

    With the last changes ``dz`` and ``dg`` of ``z`` and ``g = f(z) - z`` as columns,
    ``z <- z + g - (dz + dg) c`` where ``c`` minimises ``||g - dg c||``, with a ridge relative to each column.

    Parameters
    ----------
    f : callable
        ``f(z, *given)``, batches to batches, (n, *dims) -> (n, *dims), image by image.
    z0 : Tensor of shape (n, *dims)
        Start, real or complex.
    given : tuple of Tensor of shape (n, ...), default=()
        What else ``f`` sees of each image.
    window : int, default=5
        How many changes are remembered; memory is ``2 window`` images per image.
    max_steps : int, default=100
        Most evaluations of ``f``.
    tol : float, default=1e-5
        An image stops when ``||f(z) - z|| < tol ||f(z)||``.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        As of :func:`picard`.

    References
    ----------
    D. G. Anderson, Iterative procedures for nonlinear integral equations, Journal of the ACM 12, 1965.
    H. F. Walker and P. Ni, Anderson acceleration for fixed-point iterations, SIAM Journal on Numerical
    Analysis 49, 2011.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import anderson
    >>> anderson(lambda z: z / 2 + 1, torch.zeros(1, 1)).x.round(decimals=3)
    tensor([[2.]])
    """
    return _solve(f, z0, given, _anderson, _history(z0, window, "dz", "dg"), max_steps, tol, callback)


def broyden(
    f: Map,
    z0: Tensor,
    *,
    given: tuple[Tensor, ...] = (),
    window: int = 20,
    max_steps: int = 100,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Solve ``z = f(z)`` by Broyden's method, ``z <- z - B g`` with ``g = f(z) - z``.

    ``B``, which approximates the inverse Jacobian of ``g``, is minus the identity and ``window`` corrections
    of rank one, the oldest of which is forgotten.

    Parameters
    ----------
    f : callable
        ``f(z, *given)``, batches to batches, (n, *dims) -> (n, *dims), image by image.
    z0 : Tensor of shape (n, *dims)
        Start, real or complex.
    given : tuple of Tensor of shape (n, ...), default=()
        What else ``f`` sees of each image.
    window : int, default=20
        How many corrections are remembered; memory is ``2 window`` images per image.
    max_steps : int, default=100
        Most evaluations of ``f``.
    tol : float, default=1e-5
        An image stops when ``||f(z) - z|| < tol ||f(z)||``.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        As of :func:`picard`.

    References
    ----------
    C. G. Broyden, A class of methods for solving nonlinear simultaneous equations, Mathematics of Computation
    19, 1965.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import broyden
    >>> broyden(lambda z: z / 2 + 1, torch.zeros(1, 1)).x.round(decimals=3)
    tensor([[2.]])
    """
    return _solve(f, z0, given, _broyden, _history(z0, window, "u", "v"), max_steps, tol, callback)


class _Nothing:
    """What the loop takes for the objective: nothing is minimised."""

    def __call__(self, z: Tensor) -> Tensor:
        return torch.full((len(z),), torch.nan, dtype=z.dtype.to_real(), device=z.device)

    def select(self, index: Tensor) -> _Nothing:
        return self


def _solve(
    f: Map,
    z0: Tensor,
    given: tuple[Tensor, ...],
    propose: Propose,
    memory: State,
    max_steps: int,
    tol: float,
    callback: Callback | None,
) -> Solution:
    """The frame of all methods; ``x`` is the image under ``f`` of the best iterate ``z_best`` so far."""
    names = [f"given {i}" for i in range(len(given))]
    state = memory | dict(zip(names, given, strict=True)) | _begin(z0.detach())
    tiny = torch.finfo(z0.dtype).tiny

    def step(_: _Nothing, s: State) -> State:
        z = s["z"]
        fz = f(z, *(s[name] for name in names))
        g = _flat(fz - z)
        # What is compared is ||g||: relative to an image that explodes it would fall.
        size, length = norm(fz), norm(g)
        better = torch.isfinite(size) & (length < s["length"])
        found = {"x": fz, "z_best": z, "length": length, "residual": length / size.clamp_min(tiny)}
        new = s | {name: _where(better, a, s[name]) for name, a in found.items()}
        lost = ~(torch.isfinite(size) & (length <= _GROWTH * new["length"]))
        # Half of the step where an image is lost, and back to the whole one as it gets better.
        grown = torch.where(better, (2 * s["step"]).clamp_max(1), s["step"])
        new["step"] = torch.where(lost, s["step"] / 2, grown)
        # From a fresh start no change is known yet.
        changes = (_where(s["fresh"], 0, _flat(z) - s["z_old"]), _where(s["fresh"], 0, g - s["g_old"]))
        change, remembered = propose(s, *changes, g)
        new |= {name: _where(lost, 0, a) for name, a in remembered.items()}
        back = new["z_best"] + expand(new["step"], z) * (new["x"] - new["z_best"])
        new["z"] = _where(lost, back, z + _shaped(change, z))
        return new | {"z_old": _flat(z), "g_old": g, "fresh": lost}

    return iterate(step, _Nothing(), state, max_steps=max_steps, tol=tol, callback=callback)


def _begin(z0: Tensor) -> State:
    unknown = torch.full((len(z0),), torch.inf, dtype=z0.dtype.to_real(), device=z0.device)
    images = {"x": z0, "z": z0, "z_best": z0, "z_old": _flat(z0), "g_old": _flat(z0)}
    numbers = {"residual": unknown, "length": unknown, "step": torch.ones_like(unknown)}
    return images | numbers | {"fresh": torch.ones_like(unknown, dtype=torch.bool)}


def _picard(s: State, dz: Tensor, dg: Tensor, g: Tensor) -> tuple[Tensor, State]:
    return expand(s["step"], g) * g, {}


def _anderson(s: State, dz: Tensor, dg: Tensor, g: Tensor) -> tuple[Tensor, State]:
    history = {"dz": _remember(s["dz"], dz), "dg": _remember(s["dg"], dg)}
    lengths = torch.linalg.vector_norm(history["dg"], dim=2).clamp_min(torch.finfo(g.dtype).tiny)
    # Columns of length 1, so that the ridge is relative to each; it also takes columns of zeros.
    unit = history["dg"] / lengths[:, :, None]
    ridge = _RIDGE[g.dtype] * torch.eye(unit.shape[1], dtype=g.dtype, device=g.device)
    c = torch.linalg.solve_ex(unit @ unit.mT + ridge, _products(unit, g))[0] / lengths
    step = expand(s["step"], g)
    change = step * (g - _combine(c, history["dg"])) - _combine(c, history["dz"])
    return change, history


def _broyden(s: State, dz: Tensor, dg: Tensor, g: Tensor) -> tuple[Tensor, State]:
    # B = sum u v^T - I; the correction makes B dg = dz.
    u, v = s["u"], s["v"]
    B_dg = _combine(_products(v, dg), u) - dg
    Bt_dz = _combine(_products(u, dz), v) - dz
    curvature = (dz * B_dg).sum(1, keepdim=True)
    small = curvature.abs() <= torch.finfo(g.dtype).eps * norm(dz)[:, None] * norm(B_dg)[:, None]
    correction = torch.where(small, 0, (dz - B_dg) / torch.where(small, 1, curvature))
    history = {"u": _remember(u, correction), "v": _remember(v, Bt_dz)}
    B_g = _combine(_products(history["v"], g), history["u"]) - g
    return -expand(s["step"], g) * B_g, history


def _products(rows: Tensor, a: Tensor) -> Tensor:
    return (rows @ a[:, :, None])[:, :, 0]


def _combine(c: Tensor, rows: Tensor) -> Tensor:
    return (c[:, None, :] @ rows)[:, 0]


def _remember(rows: Tensor, new: Tensor) -> Tensor:
    """The rows without the oldest, then the new one."""
    return torch.cat([rows[:, 1:], new[:, None]], 1)


def _history(z0: Tensor, window: int, *names: str) -> State:
    n_values = _flat(z0[:1]).shape[1] if len(z0) else 0
    rows = torch.zeros(len(z0), window, n_values, dtype=z0.dtype.to_real(), device=z0.device)
    return dict.fromkeys(names, rows)


def _flat(z: Tensor) -> Tensor:
    """Images as real vectors."""
    return (torch.view_as_real(z) if z.is_complex() else z).flatten(1)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(flat.reshape(*like.shape, 2))
    return flat.reshape(like.shape)


def _where(condition: Tensor, a: Tensor | float, b: Tensor) -> Tensor:
    """Image by image."""
    return torch.where(condition.reshape(-1, *[1] * (b.ndim - 1)), a, b)
