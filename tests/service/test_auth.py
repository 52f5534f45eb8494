"""API keys: who passes, and what is told of them."""

import statistics
import time
from contextlib import suppress

import pytest

from service.auth import ANONYMOUS, Authenticator
from service.errors import Unauthenticated

ONE, TWO = "the-first-key-of-two", "the-second-key-of-two"


def test_without_keys_everyone_is_anonymous() -> None:
    assert Authenticator([]).caller(None) == ANONYMOUS
    assert Authenticator([]).caller("Bearer whatever") == ANONYMOUS
    assert not Authenticator([]).asks_for_keys


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {} "])
def test_each_accepted_key_is_a_caller_of_its_own(form: str) -> None:
    authenticator = Authenticator([ONE, TWO])

    callers = [authenticator.caller(form.format(key)) for key in (ONE, TWO)]

    assert callers[0].name != callers[1].name
    assert callers[0] == Authenticator([ONE]).caller(f"Bearer {ONE}")  # the same after a restart


@pytest.mark.parametrize("key", [ONE, TWO])
def test_no_part_of_a_key_is_in_its_callers_name(key: str) -> None:
    name = Authenticator([ONE, TWO]).caller(f"Bearer {key}").name.removeprefix("key-")

    assert not [key[i : i + 4] for i in range(len(key) - 3) if key[i : i + 4] in name]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer   ", ONE, f"Basic {ONE}"])
def test_a_header_without_a_key_is_told_apart(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Authenticator([ONE]).caller(header)

    assert caught.value.code == "missing_api_key"
    assert "Authorization: Bearer" in caught.value.hint


@pytest.mark.parametrize("key", [ONE[:-1], f"{ONE}x", ONE.upper(), f"{ONE} {ONE}", "ü" * 20])
def test_a_near_miss_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Authenticator([ONE, TWO]).caller(f"Bearer {key}")

    assert caught.value.code == "invalid_api_key"
    assert key not in caught.value.message + caught.value.hint


def test_a_look_up_costs_the_same_with_many_keys() -> None:
    """A comparison with each of them would take milliseconds of every request."""
    many = Authenticator([f"one-of-many-keys-{number}" for number in range(50_000)] + [ONE])
    took = []
    for key in (ONE, TWO) * 50:
        began = time.perf_counter()
        with suppress(Unauthenticated):
            many.caller(f"Bearer {key}")
        took.append(time.perf_counter() - began)

    assert statistics.median(took) < 0.0002
