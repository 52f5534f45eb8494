"""Recorded traces."""

from pathlib import Path
from typing import Any

import pytest

from loadtests.scenario import Replay, ScenarioError
from loadtests.traces import read_trace
from tests.loadtests.made import AZURE, trace


def replay(file: str, format_: str = "mooncake", **changes: Any) -> Replay:
    return Replay.model_validate({"file": file, "format": format_} | changes)


def test_mooncake_gives_times_lengths_and_prefixes_in_order_of_arrival(tmp_path: Path) -> None:
    rows = read_trace(replay(trace(tmp_path)))

    assert [row.at_s for row in rows] == [0, 1.5, 2]
    assert [row.input_tokens for row in rows] == [1100, 400, 1200]
    assert rows[2].hashes == (0, 1, 3)


def test_azure_gives_times_and_lengths(tmp_path: Path) -> None:
    rows = read_trace(replay(trace(tmp_path, AZURE), "azure"))

    assert [row.at_s for row in rows] == [0, pytest.approx(1.052)]
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(374, 44), (396, 109)]
    assert rows[0].hashes == ()


def test_speed_and_scale_change_times_and_lengths(tmp_path: Path) -> None:
    rows = read_trace(replay(trace(tmp_path), speed=10, length_scale=0.1))

    assert [row.at_s for row in rows] == pytest.approx([0, 0.15, 0.2])
    assert [row.input_tokens for row in rows] == [110, 40, 120]
    assert [row.output_tokens for row in rows] == [5, 900, 2]


@pytest.mark.parametrize(
    ("limits", "inputs", "outputs"),
    [
        ({"max_requests": 2}, [1100, 400], [50, 9000]),
        ({"begin_s": 1.5}, [400, 1200], [9000, 20]),
        ({"duration_s": 1.0}, [1100], [50]),
        ({"duration_s": 1.0, "speed": 2}, [1100, 400], [50, 9000]),
        ({"max_input_tokens": 500, "max_output_tokens": 30}, [500, 400, 500], [30, 30, 20]),
        ({"length_scale": 1e-6}, [1, 1, 1], [1, 1, 1]),
    ],
)
def test_limits_cut_requests_and_lengths(
    tmp_path: Path, limits: dict[str, Any], inputs: list[int], outputs: list[int]
) -> None:
    rows = read_trace(replay(trace(tmp_path), **limits))

    assert [row.input_tokens for row in rows] == inputs
    assert [row.output_tokens for row in rows] == outputs
    assert rows[0].at_s == 0


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("mooncake", "TIMESTAMP,ContextTokens\n"),
        ("mooncake", '{"timestamp": 1}\n'),
        ("mooncake", ""),
        ("azure", '{"timestamp": 1}\n1\n'),
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n"),
    ],
)
def test_what_is_no_trace_is_bad_input(tmp_path: Path, format_: str, text: str) -> None:
    with pytest.raises(ScenarioError, match="replay"):
        read_trace(replay(trace(tmp_path, text), format_))


def test_a_missing_trace_is_bad_input() -> None:
    with pytest.raises(ScenarioError, match="cannot read"):
        read_trace(replay("no/such/file"))
