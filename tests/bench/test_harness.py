"""Claims, their JSON, and statistics."""

import json
import random
import statistics
from pathlib import Path

import pytest

from bench.harness import Report, at_least, at_most, bootstrap_interval, paired_order, quick


def test_a_claim_holds_at_its_bound_and_not_beyond() -> None:
    assert at_least("x", 0.97, 0.97).holds
    assert not at_least("x", 0.969, 0.97).holds
    assert at_most("x", 0.3, 0.3).holds
    assert not at_most("x", 0.301, 0.3).holds
    assert not at_most("x", float("nan"), 1).holds


def test_a_line_says_what_value_bound_and_verdict() -> None:
    line = at_most("extra CPU", 0.5, 0.3, "ms").line()

    assert line == "FAILS: extra CPU, at most 0.3 ms: 0.5 ms"


def test_the_json_has_the_agreed_keys_and_the_exit_code_follows(tmp_path: Path) -> None:
    report = Report("x")
    report.add(at_least("a", 1.0, 0.5))
    assert report.write(tmp_path) == 0
    report.add(at_least("b", 0.1, 0.5, "/s"))
    assert report.write(tmp_path) == 1

    result = json.loads((tmp_path / "x.json").read_text())

    assert {"name", "machine", "versions", "commit", "claims"} <= set(result)
    assert [set(claim) for claim in result["claims"]] == [
        {"claim", "value", "bound", "unit", "holds"}
    ] * 2
    assert result["machine"]["cores"] >= 1


def test_a_benchmark_that_claims_nothing_does_not_pass(tmp_path: Path) -> None:
    assert Report("x").write(tmp_path) == 1


def test_bootstrap_covers_the_true_median_as_often_as_it_says() -> None:
    generator = random.Random(1)
    covered = 0
    for trial in range(60):
        values = [generator.gauss(1.0, 0.05) for _ in range(24)]
        low, high = bootstrap_interval(values, seed=trial)
        assert low <= statistics.median(values) <= high
        covered += low <= 1.0 <= high

    assert covered >= 52


def test_bootstrap_of_equal_values_is_that_value_and_seeds_repeat() -> None:
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)
    values = [1.0, 2.0, 3.0, 4.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_pairs_alternate_who_goes_first() -> None:
    assert [paired_order(pair)[0] for pair in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(("value", "short"), [("1", True), ("0", False), ("", False)])
def test_quick_is_asked_for_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, short: bool
) -> None:
    monkeypatch.setenv("QUICK", value)

    assert quick() is short
