"""The engine's pace, and what a request is expected to take."""

import pytest

from service.admission.pace import MOST_KINDS, Forecast, Pace, Size


def test_the_pace_is_known_after_a_second_of_waiting() -> None:
    pace = Pace()
    for step in range(10):
        pace.step(20, step * 0.1, waiting=True)
    assert pace.rate is None
    assert pace.wait_s(100) is None
    for step in range(10, 13):
        pace.step(20, step * 0.1, waiting=True)
    assert pace.rate == pytest.approx(200)
    assert pace.wait_s(100) == pytest.approx(0.5)


def test_an_engine_that_is_not_full_says_nothing_of_its_pace() -> None:
    pace = Pace()
    for step in range(100):
        pace.step(1, step * 0.1, waiting=False)
    assert pace.rate is None
    for step in range(100):
        pace.step(20, 100 + step * 0.1, waiting=True)
    for step in range(100):
        pace.step(1, 200 + step * 0.1, waiting=False)
    assert pace.rate == pytest.approx(200, rel=0.01)


def test_the_pace_follows_the_last_seconds() -> None:
    pace = Pace()
    for step in range(300):
        pace.step(20, step * 0.1, waiting=True)
    for step in range(300, 1200):
        pace.step(5, step * 0.1, waiting=True)
    assert pace.rate == pytest.approx(50, rel=0.05)


def test_a_request_is_expected_to_take_what_its_like_took() -> None:
    forecast, size = Forecast(), Size(body=400, sequences=2, most=200)
    before = forecast.expect("kind", size)
    for _ in range(100):
        forecast.learn("kind", size, prompt=60, answer=90)
    assert forecast.expect("kind", size) == 150 != before
    assert forecast.expect("other", size) == before
    assert forecast.expect("kind", Size(400, 2, most=10)) == 80
    assert forecast.expect("kind", Size(0, 0, 0)) == 1


def test_kinds_are_forgotten_when_there_are_too_many() -> None:
    forecast = Forecast()
    for number in range(2 * MOST_KINDS):
        forecast.learn(number, Size(1), 1, 1)
    assert len(forecast._kinds) == MOST_KINDS
