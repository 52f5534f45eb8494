"""Benchmarks of several parts."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import parts
from bench.harness import Report, at_least
from bench.servers import ServerError


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(parts, "RESULTS", tmp_path)
    write = Report.write
    monkeypatch.setattr(Report, "write", lambda self: write(self, tmp_path))
    return tmp_path


def measuring(value: float) -> Any:
    def measure(report: Report, _folder: Path, *, short: bool) -> None:
        report.add(at_least("a value", value, 1.0))
        report.measurements.append({"short": short})

    return measure


def ending(_report: Report, _folder: Path, *, short: bool) -> None:
    raise ServerError("it did not start")


def test_each_part_writes_its_own_report_and_one_that_fails_decides(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = parts.run_parts("x", {"a": measuring(2), "b": ending, "c": measuring(0)}, [], "x")

    assert found == 1
    assert "it did not start" in capsys.readouterr().err
    assert sorted(path.name for path in results.glob("*.json")) == ["x-a.json", "x-c.json"]
    claims = [json.loads((results / f"x-{n}.json").read_text())["claims"][0] for n in "ac"]
    assert [claim["holds"] for claim in claims] == [True, False]


def test_one_part_is_measured_alone(results: Path) -> None:
    assert parts.run_parts("x", {"a": measuring(2), "b": ending}, ["--only", "a"], "x") == 0
    assert [path.name for path in results.glob("*.json")] == ["x-a.json"]
