"""Rules: what ends a canary, and how seldom a good one is ended."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.rules import Rule, Side, Verdict, bucket, is_due, judge, seconds_of, wilson


def side(answers: int, errors: int = 0, seconds: float = 0.1) -> Side:
    made = Side()
    for number in range(answers):
        made.observe(seconds, failed=number < errors)
    return made


def scored(values: list[float]) -> Side:
    made = side(100)
    for value in values:
        made.score(value)
    return made


def test_more_failures_end_it_and_the_reason_has_the_figures() -> None:
    verdict = judge(Rule(), side(500, 5), side(50, 10), look=1)

    assert verdict is not None
    assert not verdict.promote
    assert verdict.reason == "10 of 50 answers failed, 5 of 500 of the live version"


def test_failures_that_chance_explains_do_not() -> None:
    assert judge(Rule(), side(500, 5), side(50, 2), look=1) is None


def test_a_rule_may_allow_more_failures_or_not_compare_them() -> None:
    live, canary = side(500, 5), side(50, 10)
    assert judge(Rule(max_error_increase=0.15), live, canary, look=1) is None
    assert judge(Rule(max_error_increase=None), live, canary, look=1) is None


def test_slower_answers_end_it() -> None:
    verdict = judge(Rule(), side(200), side(100, seconds=0.2), look=1)

    assert verdict is not None
    assert not verdict.promote
    assert "100 of 100 answers took over 0.16 s" in verdict.reason


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.14])
def test_answers_within_the_allowed_ratio_do_not(seconds: float) -> None:
    assert judge(Rule(), side(200), side(100, seconds=seconds), look=1) is None


def test_a_few_slow_answers_are_no_slow_version() -> None:
    canary = side(97)
    for _ in range(3):
        canary.observe(9.0, failed=False)
    assert judge(Rule(), side(200), canary, look=1) is None


def test_lower_scores_end_it() -> None:
    verdict = judge(Rule(), scored([0.8, 1.0] * 30), scored([0.2, 0.6] * 20), look=1)

    assert verdict == Verdict(
        promote=False, reason="mean score 0.4 of 40, 0.9 of 60 of the live version"
    )


@pytest.mark.parametrize("values", [[0.8, 1.0] * 20, [0.0] * 29, [0.7, 1.0] * 20])
def test_scores_as_good_or_too_few_do_not(values: list[float]) -> None:
    assert judge(Rule(), scored([0.8, 1.0] * 30), scored(values), look=1) is None


def test_nothing_is_compared_before_both_sides_have_answered_enough() -> None:
    assert judge(Rule(), side(49), side(400, 400), look=1) is None
    assert not is_due(Rule(), 49, 0)
    assert is_due(Rule(), 50, 0)


def test_another_look_needs_a_fifth_more_answers() -> None:
    assert next(n for n in range(50, 90) if is_due(Rule(), n, 50)) == 60


def test_it_is_promoted_after_the_answers_that_its_rule_asks_for() -> None:
    rule = Rule(promote_after=60)
    assert judge(rule, side(500), side(59), look=1) is None
    assert judge(rule, side(500), side(60), look=1) == Verdict(
        promote=True, reason="not worse in 60 answers"
    )
    assert is_due(rule, 60, 58)


def test_a_worse_one_is_rolled_back_also_when_its_promotion_is_due() -> None:
    verdict = judge(Rule(promote_after=60), side(500), side(60, 30), look=1)
    assert verdict is not None
    assert not verdict.promote


def test_equal_sides_are_hardly_ever_rolled_back_however_often_they_are_compared() -> None:
    """400 canaries as good as the live version, 2,000 answers each; 3 criteria of 1 % each."""
    generator = random.Random(7)

    def observe(one: Side) -> None:
        one.observe(generator.lognormvariate(0, 0.8), failed=generator.random() < 0.05)
        if generator.random() < 0.3:
            one.score(float(generator.random() < 0.7))

    wrong = 0
    for _ in range(400):
        live, canary, looks, judged_at = Side(), Side(), 0, 0
        for _ in range(2000):
            observe(live)
            observe(canary)
            if is_due(Rule(), canary.answers, judged_at):
                looks, judged_at = looks + 1, canary.answers
                if judge(Rule(), live, canary, looks) is not None:
                    wrong += 1
                    break
    assert wrong <= 0.03 * 400


def test_a_worse_side_is_found_soon() -> None:
    """200 canaries that fail in 15 % where the live version fails in 1 %: 95 % by 400 answers."""
    generator = random.Random(8)
    found = 0
    for _ in range(200):
        live, canary, looks, judged_at = Side(), Side(), 0, 0
        for _ in range(400):
            live.observe(1.0, failed=generator.random() < 0.01)
            canary.observe(1.0, failed=generator.random() < 0.15)
            if is_due(Rule(), canary.answers, judged_at):
                looks, judged_at = looks + 1, canary.answers
                if judge(Rule(), live, canary, looks) is not None:
                    found += 1
                    break
    assert found >= 190


@given(st.floats(0.0, 10_000.0))
def test_a_time_lies_within_a_tenth_below_its_buckets_bound(seconds: float) -> None:
    bound = seconds_of(bucket(seconds))
    assert seconds <= bound * (1 + 1e-9)
    assert bound <= max(0.001, seconds) * 1.1 * (1 + 1e-9)


def test_quantiles_and_the_sum_of_two_servers() -> None:
    one, other = side(90), side(10, seconds=5.0)
    one.add(other.answers, other.errors, {str(k): n for k, n in other.seconds.items()})
    assert one.answers == 100
    assert one.quantile(0.5) == pytest.approx(0.1, rel=0.1)
    assert one.quantile(0.95) == pytest.approx(5.0, rel=0.1)
    assert Side().quantile(0.5) is None


def test_wilsons_interval_against_published_values() -> None:
    """Newcombe 1998 (Stat. Med. 17, 857), table I, method 3: 81 of 263 and 15 of 148."""
    assert wilson(81, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148, 1.959964) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 0, 2.0) == (0.0, 1.0)
    assert not math.isnan(wilson(0, 20, 2.0)[1])
