import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from festina.errors import FestinaError
from festina.plan import Plan
from festina.search.evaluation import Evaluation
from festina.search.front import Front, Point, confidence_interval, non_dominated

PLAN = Plan.computing_all("Toy", ("blocks.0.ff",), 2)


def _evaluation(macs: int, reward: float, seconds: float = 4.0, held: int = 0) -> Evaluation:
    return Evaluation(PLAN, 2, (reward - 0.1, reward + 0.1), 1, macs, seconds, held)


def _point(macs: int, searched: float, held_out: float, seconds: float, held: int) -> Point:
    return Point(PLAN, _evaluation(macs, searched), _evaluation(macs, held_out, seconds, held))


FRONT = Front(
    (_point(10, 0.3, 0.35, 2.0, 900), _point(20, 0.6, 0.55, 4.0, 500), _point(30, 0.8, 0.5, 6.0, 300)),
    _point(40, 0.8, 0.75, 8.0, 0),
)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_non_dominated_is_the_definition(figures: list[tuple[int, int]]) -> None:
    evaluations = [_evaluation(macs, float(reward)) for macs, reward in figures]

    def beats(one: Evaluation, other: Evaluation) -> bool:
        no_worse = one.macs <= other.macs and one.reward >= other.reward
        return no_worse and (one.macs, one.reward) != (other.macs, other.reward)

    wanted = [found for found in evaluations if not any(beats(other, found) for other in evaluations)]
    kept = non_dominated(evaluations)
    assert sorted(map(id, kept)) == sorted(map(id, wanted))
    assert [found.macs for found in kept] == sorted(found.macs for found in kept)


def test_confidence_interval_is_students_over_prompts() -> None:
    # Means 1, 2, 3 of three prompts: s = 1, t(0.975, 2) = 4.302653.
    low, high = confidence_interval([0.5, 1.5, 2.0, 2.0, 4.0, 2.0], images_per_prompt=2)
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)), abs=1e-6)


def test_one_prompt_has_no_interval() -> None:
    with pytest.raises(FestinaError, match="at least two"):
        confidence_interval([0.1, 0.2], images_per_prompt=2)


@pytest.mark.parametrize(
    ("limits", "macs"),
    [
        ({}, 20),
        ({"speedup": 2.0}, 20),
        ({"speedup": 2.5}, 10),
        ({"max_macs": 19}, 10),
        ({"max_seconds": 1.0}, 10),
        ({"max_bytes": 499}, 30),
        ({"min_quality": 0.4, "max_bytes": 400}, 30),
        ({"speedup": 2.0, "max_macs": 20, "max_seconds": 2.0, "max_bytes": 500, "min_quality": 0.5}, 20),
    ],
)
def test_best_is_the_best_held_out_reward_within_all_limits(limits: dict[str, float], macs: int) -> None:
    assert FRONT.best(**limits).macs == macs


def test_best_says_what_is_closest_when_nothing_is_within() -> None:
    with pytest.raises(FestinaError, match=r"speedup = 5 was asked, the closest available is 4"):
        FRONT.best(speedup=5)
    with pytest.raises(FestinaError, match=r"min_quality = 0\.9 .* closest available is 0\.55"):
        FRONT.best(min_quality=0.9)
    with pytest.raises(FestinaError, match="all together for none"):
        FRONT.best(speedup=4, max_bytes=300)
    with pytest.raises(FestinaError, match="empty"):
        Front((), FRONT.uncached).best()


def test_equal_rewards_take_the_cheaper_plan() -> None:
    front = Front((_point(10, 0.5, 0.5, 2, 0), _point(20, 0.6, 0.5, 3, 0)), FRONT.uncached)
    assert front.best().macs == 10


def test_figures_of_a_point_are_held_out_ones_per_picture() -> None:
    point = FRONT.points[0]
    assert (point.reward, point.seconds, point.bytes_held) == (pytest.approx(0.35), 1.0, 900)
    assert FRONT.speedup(point) == 4.0
    assert point.interval == confidence_interval(point.held_out.scores, 1)
