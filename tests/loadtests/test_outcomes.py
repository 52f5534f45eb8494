"""Outcomes and their measures."""

from pathlib import Path

import pytest

from loadtests.outcomes import error_kind, percentile, read_outcomes, requests, write_outcomes
from tests.loadtests.made import outcome


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([1, 2], 50) == 1
    assert percentile([1, 2], 99) == 2
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_outcomes_survive_their_file(tmp_path: Path) -> None:
    outcomes = [outcome(ttft_ms=1.5, gaps_ms=(1.0, 2.0), model="a@2"), outcome(error="x")]

    write_outcomes(tmp_path / "deep" / "o.jsonl", outcomes)

    assert read_outcomes(tmp_path / "deep" / "o.jsonl") == outcomes


def test_what_goes_on_beside_is_no_request() -> None:
    outcomes = [outcome(kind="batch"), outcome(kind="fine_tuning"), outcome(kind="chat")]

    assert [one.kind for one in requests(outcomes)] == ["chat"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("HTTP 429: overloaded: a place is expected in 33.8 s", "HTTP 429: overloaded"),
        ("HTTP 503", "HTTP 503"),
        ("HTTP 500: a b: c", "HTTP 500"),
        ("ConnectionRefusedError: [Errno 111] refused", "ConnectionRefusedError"),
        ("no whole answer within 5 s", "no whole answer within 5 s"),
        ("x" * 80, "x" * 59 + "…"),
    ],
)
def test_errors_of_one_kind_have_one_name(error: str, kind: str) -> None:
    assert error_kind(error) == kind
