"""The command, with Locust as its child, against the stand-in server."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.__main__ import main
from loadtests.outcomes import read_outcomes
from loadtests.overhead import stand_in
from loadtests.plan import arrivals_planned
from loadtests.sampling import read_samples
from loadtests.scenario import load_scenario
from tests.loadtests.made import trace

CHAT_STREAM = "/v1/chat/completions chat_stream"
OPEN = """description: open
arrivals: [{rate_per_s: 30, duration_s: 1}]
mix: {chat_stream: 2, classify: 1}
schedule: {late_ms: 2000}
slo: {ttft_p95_ms: LIMIT, error_ratio: 0}
"""
CLOSED = """description: closed
users: 3
duration_s: 1
mix: {chat_stream: 2, generate: 1}
think_s: 0.1
slo: {requests_per_s: 2}
"""
REPLAY = """description: replay
replay: {file: FILE, format: mooncake, speed: 10, length_scale: 0.1, max_output_tokens: 8}
mix: {chat_stream: 1}
schedule: {late_ms: 2000}
slo: {error_ratio: 0}
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
    code = run(tmp_path, server, OPEN.replace("LIMIT", "5000"))

    assert code == 0, capsys.readouterr()
    assert "holds: time to first token, p95" in capsys.readouterr().out
    assert "<html" in (tmp_path / "out" / "load.html").read_text()
    table = rows(tmp_path)
    assert int(table["Aggregated"]["Request Count"]) == len(seen)
    first, whole = (table[name] for name in ("chat_stream: time to first token", CHAT_STREAM))
    assert 0 < float(first["Median Response Time"]) < float(whole["Median Response Time"])
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
    outcomes = read_outcomes(tmp_path / "out" / "load_outcomes.jsonl")
    assert max(outcome.arrived_s for outcome in outcomes) < 1.2


def test_bad_input_gives_exit_code_2(tmp_path: Path, server: str) -> None:
    assert run(tmp_path, server, "description: x") == 2
    assert run(tmp_path, "127.0.0.1", CLOSED) == 2
    assert main(["--host", server, "--scenario", "no_such"]) == 2


def test_an_unreachable_server_gives_exit_code_1(tmp_path: Path) -> None:
    assert run(tmp_path, "http://127.0.0.1:1", CLOSED) == 1


def test_a_trace_is_replayed_at_its_moments_with_its_lengths_and_prefixes(tmp_path: Path) -> None:
    text = REPLAY.replace("FILE", trace(tmp_path))
    with stand_in("--ttft-ms", "5", "--gap-ms", "1", "--tokens", "2") as host:
        assert run(tmp_path, host, text) == 0

    outcomes = read_outcomes(tmp_path / "out" / "load_outcomes.jsonl")
    found = sorted(outcomes, key=lambda outcome: outcome.arrived_s)
    assert [one.arrived_s for one in found] == pytest.approx([0, 0.15, 0.2], abs=0.02)
    assert [one.answer.input_tokens for one in found] == pytest.approx([110, 40, 120], abs=2)


@pytest.mark.slow
def test_workers_share_a_load_and_their_outcomes_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "load.yaml"
    path.write_text(OPEN.replace("LIMIT", "5000").replace(", classify: 1", ""))
    arguments = ["--scenario", str(path), "--out", str(tmp_path / "out"), "--workers", "2"]
    with stand_in("--ttft-ms", "20", "--gap-ms", "5", "--tokens", "4") as host:
        assert main(["--host", host, *arguments]) == 0

    planned = arrivals_planned(load_scenario(path))
    outcomes = read_outcomes(tmp_path / "out" / "load_outcomes.jsonl")
    assert len(outcomes) == planned
    assert int(rows(tmp_path)["Aggregated"]["Request Count"]) == planned
    samples = read_samples(tmp_path / "out" / "load_samples.jsonl")
    assert samples, "the leader asks the server"


def test_locust_stays_in_its_child() -> None:
    assert "locust" not in sys.modules
