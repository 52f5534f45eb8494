"""What callers are told of their limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.limiting.limits import NO_LIMITS, Defaults, Limits
from service.limiting.standing import Outcome, Seen, Use, retry_after_s, span
from service.settings import Settings


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (59.2, "1m0s"), (61, "1m1s"), (360, "6m0s")],
)
def test_spans_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(st.floats(0, 1e6))
def test_a_retry_is_in_whole_seconds_that_openais_client_heeds(wait_s: float) -> None:
    assert 0 < retry_after_s(wait_s) <= 60
    assert wait_s > 60 or retry_after_s(wait_s) >= wait_s


def test_of_key_and_project_the_limit_with_the_least_left_is_told() -> None:
    key = Seen("key k", Limits(10, 500), [Use(100, 2, 300), Use(130, 1, 100)], 0, 0)
    project = Seen("project p", Limits(1000, 450), [Use(100, 7, 0), Use(140, 0, 10)], 0, 0)
    headers = dict(Outcome(140, 140.5, [key, project]).headers())
    assert headers == {
        "x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-reset-requests": "51s",
        "x-ratelimit-limit-tokens": "500", "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "51s",
    }  # fmt: skip


def test_what_has_no_limit_has_no_header() -> None:
    seen = Seen("key k", Limits(concurrent=3), [Use(1, 1, 1)], 1, 0)
    assert Outcome(1, 1.0, [seen]).headers() == []


def test_the_limit_that_holds_up_the_longest_is_named() -> None:
    seen = Seen("key k", Limits(1, 10, 1), [Use(100, 1, 0), Use(150, 0, 10)], 1, 5)
    over = Outcome(None, 155.0, [seen]).excess()
    assert (over.what, over.limit, over.used, over.wait_s) == ("tokens in a minute", 10, 10, 56.0)


def test_own_limits_stand_above_those_of_the_settings() -> None:
    settings = Settings(key_requests_per_minute=7, key_concurrent=3, project_tokens_per_minute=9)
    defaults = Defaults.of(settings)
    assert defaults.key == Limits(7, None, 3)
    assert defaults.project == Limits(None, 9, None)
    assert Limits(None, 5, 0).above(defaults.key) == Limits(7, 5, None)
    assert NO_LIMITS.above(Defaults.of(Settings()).key) == NO_LIMITS
    assert not Defaults.of(Settings())


def test_a_refusal_whose_reason_has_passed_meanwhile_names_a_limit_and_no_wait() -> None:
    seen = Seen("key k", Limits(None, 10), [], 0, 5)
    assert Outcome(None, 155.0, [seen]).excess() == ("key k", "tokens in a minute", 10, 10, 0.0)
