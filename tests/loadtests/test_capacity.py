"""The highest rate within the limits."""

import json
from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.capacity import piling
from loadtests.overhead import stand_in
from tests.loadtests.made import outcome, result, scenario

LOAD = """description: limits
arrivals: [{rate_per_s: 4, duration_s: 10}]
mix: {chat_stream: 1}
schedule: {late_ms: 1000}
slo: {ttft_p95_ms: 800}
"""


def test_requests_that_pile_up_are_beyond_the_server_however_it_looks_so_far() -> None:
    made = scenario(arrivals=[{"rate_per_s": 10, "duration_s": 30}])
    moments = [number / 10 for number in range(300)]

    steady = result(made, [outcome(arrived_s=one, end=2000.0) for one in moments])
    piled = result(made, [outcome(arrived_s=one, end=one * one * 40) for one in moments])

    assert piling(steady).holds
    assert not piling(piled).holds


@pytest.mark.parametrize(
    "more", [["--start", "0.01"], ["--precision", "0"], ["--scenario", "mooncake"]]
)
def test_a_search_that_cannot_be_is_bad_input(tmp_path: Path, more: list[str]) -> None:
    arguments = ["capacity", "--host", "http://127.0.0.1:1", "--scenario", "chat"]

    assert main([*arguments, "--out", str(tmp_path), *more]) == 2


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_limit_of_a_server_with_few_places_is_found_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "load.yaml"
    path.write_text(LOAD)
    # 4 places, 0.2 s an answer: 20 requests a second at most
    with stand_in("--places", "4", "--ttft-ms", "50", "--gap-ms", "10") as host:
        arguments = ["capacity", "--host", host, "--scenario", str(path), "--sample-s", "0.2"]
        more = ["--start", "8", "--duration-s", "5", "--precision", "0.5", "--confirm", "1"]
        code = main([*arguments, *more, "--out", str(tmp_path / "out")])

    text = capsys.readouterr().out
    assert code == 0, text
    report = json.loads((tmp_path / "out" / "load-capacity.json").read_text())
    assert 8 <= report["requests_per_s"] <= 23, text
    assert report["saturates_first"] == "sequences"
    assert "advice: raise max_running_sequences" in text
    assert "<svg" in (tmp_path / "out" / "load-capacity.html").read_text()
