"""Search of a few positive numbers by a score that knows no derivatives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

Point = tuple[float, ...]
Score = Callable[..., float]


def coordinate_search(
    score: Score, start: Point, factor: float, *, max_evaluations: int = 12
) -> tuple[Point, float]:
    """Maximise ``score(*point)`` along one coordinate after the other, by factors.

    A coordinate is multiplied by ``factor`` as long as the score rises or, if it does not rise at once,
    divided by it as long as the score rises. The search ends when no coordinate can be improved.

    Parameters
    ----------
    score : callable
        Score ``score(*point)``, of which more is better; NaN is worse than every number.
    start : tuple of float > 0
        Point to start from.
    factor : float > 1
        Ratio of neighbouring points.
    max_evaluations : int, default=12
        Largest number of scores to compute, that of the start included.

    Returns
    -------
    point : tuple of float
        The best point that was met.
    value : float
        Its score.

    Examples
    --------
    >>> from skinverse.solvers import coordinate_search
    >>> coordinate_search(lambda x: -abs(x - 7.0), (1.0,), 2.0)
    ((8.0,), -1.0)
    """
    point, value = start, score(*start)
    n_left = max_evaluations - 1
    n_settled = 0  # number of coordinates in a row, the last one included, that cannot be improved now
    for axis in cycle(range(len(start))):
        if n_settled == len(start) or n_left < 1:
            break
        n_settled += 1
        for ratio in (factor, 1 / factor):
            better, value, n_used = _climb(score, point, value, axis, ratio, n_left)
            n_left -= n_used
            if better != point:
                point, n_settled = better, 1
                break
    return point, value


def _climb(
    score: Score, point: Point, value: float, axis: int, ratio: float, n_left: int
) -> tuple[Point, float, int]:
    """Multiply one coordinate while the score rises: the best point, its score, the evaluations used."""
    for n_used in range(1, n_left + 1):
        neighbour = (*point[:axis], point[axis] * ratio, *point[axis + 1 :])
        found = score(*neighbour)
        if not found > value:  # also where it is NaN
            return point, value, n_used
        point, value = neighbour, found
    return point, value, max(n_left, 0)
