"""Arrivals."""

from loadtests.scenario import Stage
from loadtests.shapes import poisson_arrivals

STAGES = (Stage(rate_per_s=2, duration_s=100), Stage(rate_per_s=20, duration_s=100))


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
