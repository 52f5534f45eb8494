"""The record of what was measured, and when a ratio counts as fallen."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import history
from bench.harness import ROOT, Report, at_least, at_most

MACHINE = {"cpu": "x", "cores": 2, "memory_gib": 8.0, "system": "Linux 6"}


def told(
    value: float,
    at: int,
    interval: tuple[float, float] | None = None,
    claim: str = "throughput, at least",
    unit: str = "",
    **more: Any,
) -> dict[str, Any]:
    """A report of one claim, measured at a minute."""
    one: dict[str, Any] = {"claim": claim, "value": value, "bound": 0.9, "unit": unit}
    if interval is not None:
        one["interval"] = interval
    return {
        "name": "overhead", "measured": f"2026-01-01T00:{at:02}:00+00:00", "machine": MACHINE,
        "versions": {}, "commit": f"c{at}", "short": False, "claims": [one],
    } | more  # fmt: skip


def fallen(*reports: dict[str, Any]) -> list[float]:
    """Values that fell, of the newest of these reports."""
    return [
        fall.value
        for newest, before in history.compared(reports)
        for fall in history.falls(newest, before)
    ]


def test_a_fall_within_the_spread_of_both_measurements_is_none() -> None:
    before = told(1.00, 1, (0.96, 1.04))

    assert fallen(before, told(0.95, 2, (0.91, 0.99))) == []
    assert fallen(before, told(0.93, 2, (0.89, 0.97))) == [0.93]


def test_without_intervals_the_history_tells_the_noise() -> None:
    quiet = [told(1.0 + 0.01 * (at % 2), at) for at in range(1, 6)]
    loud = [told(1.0 + 0.2 * (at % 2), at) for at in range(1, 6)]

    assert fallen(*quiet, told(0.9, 9)) == [0.9]
    assert fallen(*loud, told(1.0, 9)) == []


def test_one_earlier_report_without_an_interval_allows_a_tenth() -> None:
    assert fallen(told(1.0, 1), told(0.91, 2)) == []
    assert fallen(told(1.0, 1), told(0.89, 2)) == [0.89]


def test_what_shall_be_small_falls_behind_by_rising() -> None:
    claim = "p95 over that alone, at most"

    assert fallen(told(1.0, 1, claim=claim), told(1.2, 2, claim=claim)) == [1.2]
    assert fallen(told(1.0, 1, claim=claim), told(0.5, 2, claim=claim)) == []


def test_one_more_than_none_is_a_fall() -> None:
    claim = "requests that failed, at most"

    assert fallen(told(0, 1, claim=claim), told(1, 2, claim=claim)) == [1]


@pytest.mark.parametrize(
    "other",
    [{"machine": {**MACHINE, "cores": 64}}, {"short": True}, {"name": "overload"}],
    ids=["machine", "form", "benchmark"],
)
def test_only_the_like_is_compared(other: dict[str, Any]) -> None:
    assert fallen(told(1.0, 1, **other), told(0.5, 2)) == []


def test_another_kernel_is_the_same_machine() -> None:
    kernel = {**MACHINE, "system": "Linux 7"}

    assert fallen(told(1.0, 1, machine=kernel), told(0.5, 2)) == [0.5]


def test_seconds_are_not_compared() -> None:
    assert fallen(told(1.0, 1, unit="s"), told(0.1, 2, unit="s")) == []


def test_old_reports_no_longer_count() -> None:
    reports = [told(2.0, 1), *(told(1.0, at) for at in range(2, 2 + history.RECENT))]

    assert fallen(*reports, told(0.97, 30)) == [0.97]  # equal ones have no spread
    assert fallen(*reports, told(1.0, 30)) == []


def test_equal_measurements_rarely_fall() -> None:
    """Of gaussian figures with honest intervals, about one in forty is worse than 1.96 sigma."""
    generator = random.Random(3)
    count = 0
    for _ in range(400):
        values = [generator.gauss(1.0, 0.02) for _ in range(4)]
        reports = [told(v, at, (v - 0.04, v + 0.04)) for at, v in enumerate(values)]
        count += bool(fallen(*reports))

    assert count <= 20


def test_a_report_is_recorded_once_and_read_again(tmp_path: Path) -> None:
    folder, path = tmp_path / "results", tmp_path / "history.jsonl"
    report = Report("overhead")
    report.add(at_least("throughput", 1.0, 0.97, interval=(0.9, 1.1)))
    report.add(at_most("lost", 0, 0))
    report.measurements.append({"much": "more"})
    report.write(folder)

    assert history.record(folder, path) == 1
    assert history.record(folder, path) == 0
    (line,) = history.read(path)
    assert set(line) == set(history.KEPT)
    assert line["claims"][0]["interval"] == [0.9, 1.1]
    assert "interval" not in line["claims"][1]
    assert line["commit"]
    assert line["versions"]["python"]


def test_the_check_fails_when_the_newest_result_fell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "history.jsonl", tmp_path / "results"
    folder.mkdir()
    path.write_text(json.dumps(told(1.0, 1)) + "\n")
    (folder / "overhead.json").write_text(json.dumps(told(0.99, 2)))
    assert history.check(folder, path) == 0

    (folder / "overhead.json").write_text(json.dumps(told(0.5, 2)))
    assert history.check(folder, path) == 1
    assert "FALLS: overhead: throughput, at least: 0.5, before 1 " in capsys.readouterr().out

    history.record(folder, path)  # what is recorded is not compared with itself
    assert history.check(folder, path) == 1


def test_without_a_history_nothing_fell(tmp_path: Path) -> None:
    (tmp_path / "overhead.json").write_text(json.dumps(told(0.5, 2)))

    assert history.check(tmp_path, tmp_path / "none") == 0


def test_the_history_of_the_project_can_be_read() -> None:
    for line in history.read():
        assert {"name", "machine", "commit", "claims"} <= set(line)


def test_an_unknown_benchmark_is_told_what_there_is() -> None:
    command = [sys.executable, "-m", "bench", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "--check" in done.stderr
    assert "profile" in done.stderr
