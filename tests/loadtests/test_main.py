"""The command, with Locust as its child, against the stand-in server."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.__main__ import main

OPEN = """description: open
arrivals: [{rate_per_s: 30, duration_s: 1}]
mix: {chat_stream: 2, classify: 1}
slo: {ttft_p95_ms: LIMIT, error_ratio: 0}
"""
CLOSED = """description: closed
users: 3
duration_s: 1
mix: {chat_stream: 2, generate: 1}
think_s: 0.1
slo: {requests_per_s: 2}
"""


def run(tmp_path: Path, url: str, text: str) -> int:
    path = tmp_path / "load.yaml"
    path.write_text(text)
    return main(["--host", url, "--scenario", str(path), "--out", str(tmp_path / "out")])


def rows(tmp_path: Path) -> dict[str, dict[str, str]]:
    with (tmp_path / "out" / "load_stats.csv").open() as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def test_an_open_loop_within_its_limits_passes(
    tmp_path: Path, server: str, seen: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(tmp_path, server, OPEN.replace("LIMIT", "500"))

    assert code == 0, capsys.readouterr()
    assert "holds: time to first token, p95" in capsys.readouterr().out
    assert "<html" in (tmp_path / "out" / "load.html").read_text()
    table = rows(tmp_path)
    assert int(table["Aggregated"]["Request Count"]) == len(seen)
    assert float(table["chat_stream: time to first token"]["Median Response Time"]) < 200
    assert int(table["chat_stream: time between tokens"]["Request Count"]) > 10
    assert {request["path"] for request in seen} == {"/v1/chat/completions", "/v1/classify"}


def test_a_limit_that_fails_gives_exit_code_1(tmp_path: Path, server: str) -> None:
    assert run(tmp_path, server, OPEN.replace("LIMIT", "10")) == 1

    assert json.loads((tmp_path / "out" / "load.json").read_text())["holds"] is False


def test_a_closed_loop_sends_what_its_mix_names(
    tmp_path: Path, server: str, seen: list[dict[str, Any]]
) -> None:
    assert run(tmp_path, server, CLOSED) == 0
    assert {request["path"] for request in seen} == {"/v1/chat/completions", "/v1/generate"}


def test_bad_input_gives_exit_code_2(tmp_path: Path, server: str) -> None:
    assert run(tmp_path, server, "description: x") == 2
    assert run(tmp_path, "127.0.0.1", CLOSED) == 2
    assert main(["--host", server, "--scenario", "no_such"]) == 2


def test_an_unreachable_server_gives_exit_code_1(tmp_path: Path) -> None:
    assert run(tmp_path, "http://127.0.0.1:1", CLOSED) == 1


def test_locust_stays_in_its_child() -> None:
    assert "locust" not in sys.modules
