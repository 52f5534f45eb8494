"""Ratios of two servers."""

import json
from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.compare import ratio_of, ratios
from loadtests.overhead import stand_in

CLOSED = """description: closed
users: 4
duration_s: 1.5
mix: {chat_stream: 1}
slo: {error_ratio: 0}
"""


def test_the_interval_holds_the_median_and_narrows_with_the_noise() -> None:
    calm = ratio_of("ttft_p50_ms", [(9.0 + noise, 10.0) for noise in (-0.1, 0, 0.1, 0, 0.05)])
    noisy = ratio_of("ttft_p50_ms", [(9.0 + noise, 10.0) for noise in (-3, 0, 3, -1, 2)])

    assert calm.median == pytest.approx(0.9)
    assert calm.low <= calm.median <= calm.high
    assert calm.high - calm.low < noisy.high - noisy.low


def test_ratios_are_of_pairs_so_that_drift_cancels() -> None:
    pairs = [(speed * 2.0, speed * 1.0) for speed in (1, 5, 20)]

    found = ratio_of("requests_per_s", pairs)

    assert (found.low, found.median, found.high) == (2, 2, 2)


def test_a_measure_that_one_server_lacks_in_a_pair_is_left_out() -> None:
    whole = {"requests_per_s": 2.0, "ttft_p50_ms": 3.0}
    found = ratios([(whole, whole), (whole, {"requests_per_s": 1.0, "ttft_p50_ms": None})])

    assert [ratio.measure for ratio in found] == ["requests_per_s"]


@pytest.mark.parametrize(
    "more",
    [
        ["--pairs", "2"],
        ["--require", "speed=1"],
        ["--require", "requests_per_s=fast"],
        ["--scenario", "tasks"],
    ],
)
def test_a_comparison_that_cannot_be_is_bad_input(
    server: str, tmp_path: Path, more: list[str]
) -> None:
    # fails before anything is sent; the stand-in is no server of ours
    arguments = ["compare", "--host", server, "--against", server, "--scenario", "openai"]

    assert main([*arguments, "--out", str(tmp_path), *more]) == 2


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_server_that_is_half_as_fast_has_half_the_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "load.yaml"
    path.write_text(CLOSED)
    arguments = ["compare", "--scenario", str(path), "--pairs", "3", "--out", str(tmp_path)]
    required = ["--require", "output_tokens_per_s=0.4", "--require", "requests_per_s=0.9"]
    with stand_in("--gap-ms", "10") as fast, stand_in("--gap-ms", "20") as slow:
        code = main([*arguments, "--host", slow, "--against", fast, *required])

    text = capsys.readouterr().out
    assert code == 1, text
    assert "holds: ratio of output_tokens_per_s: 0." in text
    assert "FAILS: ratio of requests_per_s: 0." in text
    ratios = json.loads((tmp_path / "load-compare.json").read_text())["ratios"]
    gap = next(one for one in ratios if one["measure"] == "token_gap_p50_ms")
    assert 1.5 < gap["low"] <= gap["median"] <= gap["high"] < 2.5
