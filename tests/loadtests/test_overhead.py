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
def test_the_load_generator_adds_less_than_a_tenth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["overhead", "--rates", "20", "--duration-s", "5", "--out", str(tmp_path)])

    assert code == 0, capsys.readouterr().out
    rows = json.loads((tmp_path / "overhead.json").read_text())
    assert {row["measure"] for row in rows} == {"ttft", "end_to_end"}
    assert all(row["really_ms"] >= 50 for row in rows)  # the stand-in's known time
    assert all(row["measured_ms"] >= row["really_ms"] * 0.99 for row in rows)
