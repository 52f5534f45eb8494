"""The search for the highest rate."""

import random

from hypothesis import given
from hypothesis import strategies as st

from loadtests.search import Limits, search


@given(st.floats(0.06, 900), st.floats(0.05, 1000), st.integers(0, 3))
def test_the_rate_found_is_as_near_to_the_true_limit_as_was_asked(
    truth: float, start: float, confirm: int
) -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= truth

    found = search(passes, Limits(start, least=0.05, most=1000, confirm=confirm))

    if found.passing is None:  # halving from start went below least without a pass
        assert min(tried) / 2 < 0.05
        return
    assert found.confirmed
    assert found.passing <= truth
    assert found.failing is not None
    assert found.failing / found.passing <= 1.1
    assert tried.count(found.passing) == confirm + 1


def test_a_server_that_fails_nowhere_stops_at_the_highest_rate() -> None:
    found = search(lambda rate: True, Limits(3, least=1, most=50, confirm=1))

    assert (found.passing, found.failing, found.confirmed) == (50, None, True)


def test_a_server_that_passes_nowhere_has_no_rate() -> None:
    found = search(lambda rate: False, Limits(8, least=1, most=50))

    assert (found.passing, found.confirmed) == (None, False)
    assert found.failing == 1


def test_a_rate_that_once_fails_again_is_given_up_for_a_lower_one() -> None:
    seen: dict[float, int] = {}

    def passes(rate: float) -> bool:
        seen[rate] = seen.get(rate, 0) + 1
        return rate < 8 or (rate < 10 and seen[rate] == 1)

    found = search(passes, Limits(4, least=1, most=50, confirm=2))

    assert found.confirmed
    assert found.passing is not None
    assert found.passing < 8


@given(st.integers(0, 10**6))
def test_noise_never_leaves_an_unconfirmed_rate_as_confirmed(seed: int) -> None:
    generator = random.Random(seed)
    last: dict[float, int] = {}

    def passes(rate: float) -> bool:
        good = rate < generator.gauss(20, 4)
        last[rate] = last.get(rate, 0) + 1 if good else 0
        return good

    found = search(passes, Limits(5, least=0.1, most=100, confirm=2))

    if found.confirmed:
        assert found.passing is not None
        assert last[found.passing] >= 3
