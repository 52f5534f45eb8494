"""Shapes and arrivals."""

import pytest
from pydantic import TypeAdapter, ValidationError

from loadtests.shapes import Shape, Stage, poisson_arrivals

STAGES = (Stage(rate_per_s=2, duration_s=100), Stage(rate_per_s=20, duration_s=100))
SHAPE: TypeAdapter[Shape] = TypeAdapter(Shape)


def rates(**table: object) -> list[float]:
    return [stage.rate_per_s for stage in SHAPE.validate_python(table).stages()]


def length_s(**table: object) -> float:
    return sum(stage.duration_s for stage in SHAPE.validate_python(table).stages())


def test_arrivals_follow_the_rate_of_each_stage() -> None:
    moments = list(poisson_arrivals(STAGES, seed=0))

    calm = [moment for moment in moments if moment < 100]
    assert 150 < len(calm) < 250
    assert 1800 < len(moments) - len(calm) < 2200
    assert moments == sorted(moments)
    assert moments[-1] < 200


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert list(poisson_arrivals(STAGES, 1)) == list(poisson_arrivals(STAGES, 1))
    assert list(poisson_arrivals(STAGES, 1)) != list(poisson_arrivals(STAGES, 2))


def test_a_ramp_climbs_in_even_steps_from_one_rate_to_the_other() -> None:
    table = {"kind": "ramp", "from_per_s": 1, "to_per_s": 7, "steps": 4, "duration_s": 40}

    assert rates(**table) == [1, 3, 5, 7]
    assert length_s(**table) == pytest.approx(40)
    assert rates(**table | {"to_per_s": 1, "from_per_s": 7}) == [7, 5, 3, 1]


def test_bursts_come_again_and_end_in_calm() -> None:
    rate = {"rate_per_s": 1, "burst_per_s": 9}
    table = {"kind": "burst", "burst_s": 2, "every_s": 10, "bursts": 2, **rate}

    assert rates(**table) == [1, 9, 1, 9, 1]
    assert length_s(**table) == 28


def test_a_burst_longer_than_its_period_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="every_s must be longer"):
        rates(kind="burst", rate_per_s=1, burst_per_s=9, burst_s=10, every_s=10)


def test_a_spike_leaves_time_to_recover() -> None:
    table = {
        "kind": "spike", "rate_per_s": 1, "peak_per_s": 9, "before_s": 1, "peak_s": 2, "after_s": 3,
    }  # fmt: skip

    assert rates(**table) == [1, 9, 1]


def test_a_day_goes_from_its_lowest_rate_to_its_highest_and_back() -> None:
    table = {"kind": "diurnal", "low_per_s": 1, "high_per_s": 9, "day_s": 240, "days": 2}

    day = rates(**table)[:24]

    assert rates(**table) == day * 2
    assert min(day) == day[0] == pytest.approx(day[-1])
    assert max(day) == pytest.approx(day[12])
    assert 1 < day[0] < 1.1
    assert 8.9 < day[12] < 9
    assert sum(day) / 24 == pytest.approx(5)
    assert length_s(**table) == pytest.approx(480)


@pytest.mark.parametrize("kind", ["steady", "soak"])
def test_one_rate_all_the_time(kind: str) -> None:
    assert rates(kind=kind, rate_per_s=3, duration_s=9) == [3]
