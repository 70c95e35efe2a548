"""The search along coordinates: which points it looks at, and when it ends."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from skinverse.solvers import coordinate_search

Point = tuple[float, ...]


class Bowl:
    """Minus the squared distance of the logarithms, base 2, from a centre; notes where it is asked."""

    def __init__(self, *centre: float) -> None:
        self.centre = centre
        self.points: list[Point] = []

    def __call__(self, *point: float) -> float:
        self.points.append(point)
        return -sum((math.log2(x) - c) ** 2 for x, c in zip(point, self.centre, strict=True))


def test_it_goes_on_while_the_score_rises_and_turns_where_it_does_not() -> None:
    bowl = Bowl(2.0, -1.0)
    point, value = coordinate_search(bowl, (1.0, 1.0), 2.0, max_evaluations=100)
    first = [(1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (8.0, 1.0)]  # up, and once too far
    second = [(4.0, 2.0), (4.0, 0.5), (4.0, 0.25)]  # up is worse: down, and once too far
    last = [(8.0, 0.5), (2.0, 0.5)]  # the first again, neither way is better
    assert bowl.points == first + second + last
    assert (point, value) == ((4.0, 0.5), 0.0)


@given(
    centre=st.lists(st.floats(-5, 5), min_size=1, max_size=3),
    factor=st.sampled_from([1.5, 2.0, math.sqrt(10)]),
    budget=st.integers(1, 40),
)
def test_the_best_point_it_met_is_returned_within_the_budget(
    centre: list[float], factor: float, budget: int
) -> None:
    bowl = Bowl(*centre)
    point, value = coordinate_search(bowl, (1.0,) * len(centre), factor, max_evaluations=budget)
    scores = {p: Bowl(*centre)(*p) for p in bowl.points}
    assert len(bowl.points) <= budget
    assert value == scores[point] == max(scores.values())
    if len(bowl.points) < budget:  # it ended by itself: no neighbour is better
        for i in range(len(centre)):
            for ratio in (factor, 1 / factor):
                assert not Bowl(*centre)(*point[:i], point[i] * ratio, *point[i + 1 :]) > value


def test_what_is_not_a_number_is_worse_than_every_number() -> None:
    def score(x: float) -> float:
        return math.nan if x > 2 else x

    assert coordinate_search(score, (1.0,), 2.0) == ((2.0,), 2.0)


def test_a_start_without_a_number_stays() -> None:
    point, value = coordinate_search(lambda x, y: math.nan, (3.0, 4.0), 2.0)
    assert point == (3.0, 4.0)
    assert math.isnan(value)


def test_only_the_start_is_scored_where_nothing_more_is_allowed() -> None:
    bowl = Bowl(3.0)
    assert coordinate_search(bowl, (1.0,), 2.0, max_evaluations=1) == ((1.0,), -9.0)
    assert bowl.points == [(1.0,)]
