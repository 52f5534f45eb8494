"""Labels stay few, whatever comes, and leave in time."""

from hypothesis import given
from hypothesis import strategies as st

from service.series import (
    KEPT_S,
    KEPT_WHEN_FULL_S,
    LOADED_KEPT_WHEN_FULL_S,
    OTHER,
    Series,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_versions_beyond_the_most_count_as_other() -> None:
    series = Series(2, Clock())

    assert series.labels("a", "1") == ("a", "1")
    assert series.labels("a", "2") == ("a", "2")
    assert series.labels("b", "1") == (OTHER, OTHER)
    assert series.labels("a", "1") == ("a", "1")


def test_the_base_and_unknown_models_take_no_place() -> None:
    series = Series(1, Clock())

    assert series.labels("", "base") == ("", "base")
    assert series.labels("", "") == ("", "")
    assert series.labels("a", "1") == ("a", "1")


def test_an_unloaded_version_leaves_when_it_is_long_unused() -> None:
    clock = Clock()
    series = Series(9, clock)
    series.labels("loaded", "1")
    series.labels("unloaded", "1")
    clock.now = KEPT_S
    assert series.sweep({("loaded", "1")}) == []
    clock.now += 1

    assert series.sweep({("loaded", "1")}) == [("unloaded", "1")]
    assert series.sweep({("loaded", "1")}) == []


def test_a_use_makes_it_stay() -> None:
    clock = Clock()
    series = Series(9, clock)
    series.labels("a", "1")
    clock.now = KEPT_S - 1
    series.labels("a", "1")
    clock.now = KEPT_S + 1

    assert series.sweep(()) == []


def test_they_leave_sooner_while_others_have_no_place() -> None:
    clock = Clock()
    series = Series(2, clock)
    series.labels("loaded", "1")
    series.labels("unloaded", "1")
    clock.now = KEPT_WHEN_FULL_S + 1
    assert series.sweep({("loaded", "1")}) == [("unloaded", "1")]
    assert series.labels("new", "1") == ("new", "1")
    clock.now = LOADED_KEPT_WHEN_FULL_S + 1

    assert set(series.sweep({("loaded", "1"), ("new", "1")})) == {("loaded", "1")}


@given(
    most=st.integers(1, 5),
    asked=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("123"), st.booleans())),
)
def test_never_more_than_the_most_are_told_apart(
    most: int, asked: list[tuple[str, str, bool]]
) -> None:
    clock, told = Clock(), set[tuple[str, str]]()
    series = Series(most, clock)
    for adapter, version, later in asked:
        told.add(series.labels(adapter, version))
        if later:
            clock.now += KEPT_S + 1
            told -= set(series.sweep(()))
        assert len(told - {(OTHER, OTHER)}) <= most
