"""Canaries that a rule ends: counts of all servers, scores, and the end on record."""

from datetime import timedelta
from pathlib import Path

import pytest

from adapters.compatibility import Takes
from adapters.errors import (
    AdapterNotFound,
    GateFailed,
    IncompatibleAdapter,
    InvalidInput,
    VersionNotFound,
)
from adapters.registry import Registry
from adapters.rules import Rule, Side
from tests.adapters.parcels import BASE, execute, registry_with

KEY = ("x", "production")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`x` with three versions, the first live."""
    registry = registry_with(tmp_path, 3)
    registry.promote("x@1")
    return registry


def side(answers: int, errors: int = 0) -> Side:
    made = Side()
    for number in range(answers):
        made.observe(0.1, failed=number < errors)
    return made


def report(registry: Registry, server: str, live: Side, canary: Side) -> None:
    trial = registry.trials()[KEY]
    sides = {trial.live: live, trial.number: canary}
    registry.count(server, KEY, trial.started, sides)


def test_a_worse_canary_is_rolled_back_on_record(registry: Registry) -> None:
    registry.start_canary("x@2", 10, rule=Rule())
    report(registry, "one", side(400, 1), side(60, 30))

    verdict = registry.judge_canary(KEY)

    assert verdict is not None
    assert not verdict.promote
    assert (registry.canaries(), registry.aliases("x")) == ({}, {"production": 1})
    last = registry.alias_history("x")[-1]
    assert (last.who, last.why, last.percent) == ("rule", verdict.reason, 0)
    assert "30 of 60 answers failed" in last.why


def test_counts_of_all_servers_are_judged_together(registry: Registry) -> None:
    registry.start_canary("x@2", 10, rule=Rule(promote_after=100))
    for server in ("one", "two"):
        report(registry, server, side(400), side(49))
        assert registry.judge_canary(KEY) is None
    report(registry, "two", side(400), side(51))

    verdict = registry.judge_canary(KEY)

    assert verdict is not None
    assert verdict.promote
    assert registry.aliases("x") == {"production": 2}
    assert registry.alias_history("x")[-1].who == "rule"
    assert registry.rollback("x").number == 1


def test_a_server_reports_sums_and_a_second_report_replaces_the_first(registry: Registry) -> None:
    registry.start_canary("x@2", 10, rule=Rule())
    report(registry, "one", side(10), side(5))
    report(registry, "one", side(20), side(7))
    assert {n: s.answers for n, s in registry.trials()[KEY].sides.items()} == {1: 20, 2: 7}


def test_a_rule_promotes_nothing_that_a_running_server_cannot_take(registry: Registry) -> None:
    registry.start_canary("x@2", 10, rule=Rule(promote_after=100))
    registry.announce("small", Takes(base=BASE, max_rank=1, target_modules=frozenset({"q_proj"})))
    report(registry, "one", side(400), side(100))

    assert registry.judge_canary(KEY) is None
    with pytest.raises(IncompatibleAdapter):
        registry.end_canary("x", promote=True)
    assert (registry.aliases("x"), KEY in registry.canaries()) == ({"production": 1}, True)

    registry.withdraw("small")
    report(registry, "one", side(400), side(130))
    assert registry.judge_canary(KEY) is not None
    assert registry.aliases("x") == {"production": 2}


def test_a_rule_that_would_promote_past_a_failed_gate_is_refused_until_forced(
    tmp_path: Path,
) -> None:
    registry = registry_with(tmp_path, 2, failed=2)
    registry.promote("x@1")
    with pytest.raises(GateFailed):
        registry.start_canary("x@2", 10, rule=Rule(promote_after=100))
    with pytest.raises(InvalidInput, match="needs a reason"):
        registry.start_canary("x@2", 10, rule=Rule(promote_after=100), force=True)
    assert registry.canaries() == {}
    registry.start_canary("x@2", 10, rule=Rule())  # may only end it, never promote
    registry.start_canary("x@2", 10, rule=Rule(promote_after=100), force=True, why="a last try")
    assert registry.alias_history("x")[-1].why == "forced past its gate: a last try"
    registry.start_canary("x@2", 50)  # another share changes nothing of that

    report(registry, "one", side(400), side(100))
    assert registry.judge_canary(KEY) is not None

    assert registry.aliases("x") == {"production": 2}
    last = registry.alias_history("x")[-1]
    assert (last.who, last.why) == ("rule", "forced past its gate: not worse in 100 answers")


def test_a_rule_promotes_no_failed_gate_that_nobody_forced(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, 2, failed=2)
    registry.promote("x@1")
    registry.start_canary("x@2", 10, rule=Rule(promote_after=100), force=True, why="a try")
    # as a release that knew no gates would have written it
    execute(registry, "UPDATE canaries SET rule = json_remove(rule, '$.forced')")
    report(registry, "one", side(400), side(100))

    assert registry.judge_canary(KEY) is None
    assert (registry.aliases("x"), KEY in registry.canaries()) == ({"production": 1}, True)

    report(registry, "one", side(400), side(160, 100))
    assert registry.judge_canary(KEY) is not None  # worse, it still goes back
    assert registry.canaries() == {}


def test_without_a_rule_nothing_ends_it(registry: Registry) -> None:
    registry.start_canary("x@2", 10)
    report(registry, "one", side(400), side(400, 400))
    assert registry.judge_canary(KEY) is None
    assert KEY in registry.canaries()


def test_another_share_keeps_rule_and_counts_another_version_has_none(registry: Registry) -> None:
    registry.start_canary("x@2", 10, rule=Rule(promote_after=70))
    report(registry, "one", side(30), side(30))

    registry.start_canary("x@2", 50)
    trial = registry.trials()[KEY]
    assert (trial.percent, trial.rule) == (50, Rule(promote_after=70))
    assert trial.sides[2].answers == 30

    registry.start_canary("x@3", 50)
    trial = registry.trials()[KEY]
    assert (trial.rule, {n: s.answers for n, s in trial.sides.items()}) == (None, {1: 0, 3: 0})


def test_counts_of_a_canary_that_ended_are_dropped(registry: Registry) -> None:
    registry.start_canary("x@2", 10, rule=Rule())
    before = registry.trials()[KEY].started
    registry.end_canary("x", promote=False)
    registry.count("one", KEY, before, {2: side(60, 60)})
    registry.start_canary("x@2", 10, rule=Rule())
    registry.count("one", KEY, before - timedelta(hours=1), {2: side(60, 60)})

    assert registry.trials()[KEY].sides[2].answers == 0
    assert registry.judge_canary(KEY) is None


def test_low_scores_roll_it_back(registry: Registry) -> None:
    registry.start_canary("x@2", 50, rule=Rule())
    for number in range(40):
        registry.score("x", 1, 0.9, request_id=f"live-{number}")
        registry.score("x", 2, 0.1, request_id=f"canary-{number}")
    report(registry, "one", side(60), side(60))

    verdict = registry.judge_canary(KEY)

    assert verdict is not None
    assert "mean score 0.1 of 40" in verdict.reason


def test_only_scores_given_since_it_started_count_and_one_for_an_answer(registry: Registry) -> None:
    registry.score("x", 2, 0.0, request_id="earlier")
    registry.start_canary("x@2", 50, rule=Rule())
    registry.score("x", 2, 0.2, request_id="a", who="ann")
    registry.score("x", 2, 1.0, request_id="a", who="ann")

    tried = registry.trials()[KEY].sides[2]
    assert (tried.scores, tried.mean_score) == (1, 1.0)


def test_bad_scores_are_refused(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match=r"score is 1\.5"):
        registry.score("x", 1, 1.5, request_id="r")
    with pytest.raises(InvalidInput, match="score is nan"):
        registry.score("x", 1, float("nan"), request_id="r")
    with pytest.raises(VersionNotFound):
        registry.score("x", 9, 1, request_id="r")
    with pytest.raises(AdapterNotFound):
        registry.score("y", 1, 1, request_id="r")


def test_a_quarantined_version_is_no_longer_tried_out(registry: Registry) -> None:
    registry.start_canary("x@2", 50)
    registry.quarantine(registry.find("x@2"), "its files were altered")
    assert registry.canaries() == {}
    last = registry.alias_history("x")[-1]
    assert (last.who, last.why) == ("rule", "its files were altered")
