"""The load generator's own time."""

import json
from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.overhead import Added


def test_the_share_is_of_the_measured_time() -> None:
    added = Added(10, "ttft", 50, measured_ms=50, really_ms=45)

    assert added.share == pytest.approx(0.1)
    assert not Added(10, "ttft", 50, measured_ms=50, really_ms=44).holds


def test_rates_that_are_no_numbers_are_bad_input() -> None:
    assert main(["overhead", "--rates", "fast"]) == 2


@pytest.mark.slow
def test_the_load_generator_adds_less_than_a_tenth_at_the_median(tmp_path: Path) -> None:
    main(["overhead", "--rates", "20", "--duration-s", "5", "--out", str(tmp_path)])

    rows = json.loads((tmp_path / "overhead.json").read_text())
    medians = {row["measure"]: row["holds"] for row in rows if row["percent"] == 50}
    assert medians == {"ttft": True, "end_to_end": True}, rows
    assert all(row["really_ms"] >= 50 for row in rows)  # the stand-in's known time
    assert all(row["measured_ms"] >= row["really_ms"] * 0.99 for row in rows)
