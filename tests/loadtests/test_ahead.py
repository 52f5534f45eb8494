"""Requests are ready when many have one moment."""

import time
from collections.abc import Iterator

from loadtests import ahead
from loadtests.ahead import AHEAD, Ahead


def slow(count: int, made: list[int], each_s: float = 0.0) -> Iterator[int]:
    for number in range(count):
        time.sleep(each_s)
        made.append(number)
        yield number


def test_the_first_are_made_before_the_clock_starts() -> None:
    made: list[int] = []
    calls = Ahead(slow(3 * AHEAD, made), lambda: None)
    assert len(made) == AHEAD
    taken = [calls.take() for _ in range(AHEAD)]
    assert taken == made == list(range(AHEAD))


def test_more_are_made_while_there_is_time_and_answers_are_read() -> None:
    made: list[int] = []
    pauses: list[int] = []
    calls = Ahead(slow(3 * AHEAD, made), lambda: pauses.append(1))
    for _ in range(10):
        calls.take()
    calls.make_until(time.perf_counter() + 60)
    assert len(made) == AHEAD + 10
    assert len(pauses) == 10


def test_none_is_made_when_the_next_has_to_go() -> None:
    made: list[int] = []
    calls = Ahead(slow(1000, made, 0.005), lambda: None)
    while calls._ready:
        calls.take()
    moment = time.perf_counter() + ahead.SPARE_S + 0.03
    calls.make_until(moment)
    assert AHEAD < len(made) < AHEAD + 20
    assert time.perf_counter() < moment


def test_all_come_in_their_order_to_the_end() -> None:
    calls = Ahead(slow(AHEAD + 5, []), lambda: None)
    taken = []
    while (value := calls.take()) is not None:
        taken.append(value)
        calls.make_until(0)
    assert taken == list(range(AHEAD + 5))
    calls.make_until(time.perf_counter() + 1)  # there are no more
    assert calls.take() is None
