"""Recorded traces: when requests came, how long they were, and which prefixes they shared.

Mooncake's JSONL has `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, one for each
block of 512 input tokens: equal ids are equal prefixes. Azure's CSV has `TIMESTAMP`,
`ContextTokens` and `GeneratedTokens`. Neither has texts; they are made (loadtests/synthesis.py).
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from loadtests.scenario import Replay, ScenarioError


@dataclass(frozen=True)
class Recorded:
    """One request of a trace; lengths in tokens."""

    at_s: float
    input_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    """Of its blocks, in order; none where the trace tells of no prefixes."""


def read_trace(replay: Replay) -> list[Recorded]:
    """The requests to replay, scaled, cut and ascending in time. Raises ScenarioError."""
    path = Path(replay.file)
    read = _mooncake if replay.format == "mooncake" else _azure
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = sorted(read(file), key=lambda row: row.at_s)
    except OSError as error:
        raise ScenarioError(f"replay.file: cannot read {replay.file!r}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ScenarioError(
            f"replay.file: {replay.file!r} is no {replay.format} trace: {error!r}"
        ) from error
    chosen = list(islice(_scaled(rows, replay), replay.max_requests))
    if not chosen:
        raise ScenarioError(f"replay: {replay.file!r} has no request from begin_s on")
    return chosen


def _mooncake(lines: Iterator[str]) -> Iterator[Recorded]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            yield Recorded(
                at_s=float(row["timestamp"]) / 1000,
                input_tokens=int(row["input_length"]),
                output_tokens=int(row["output_length"]),
                hashes=tuple(map(int, row["hash_ids"])),
            )


def _azure(lines: Iterator[str]) -> Iterator[Recorded]:
    began: datetime | None = None
    for row in csv.DictReader(lines):
        moment = datetime.fromisoformat(row["TIMESTAMP"])
        began = moment if began is None else began
        yield Recorded(
            at_s=(moment - began).total_seconds(),
            input_tokens=int(row["ContextTokens"]),
            output_tokens=int(row["GeneratedTokens"]),
        )


def _scaled(rows: list[Recorded], replay: Replay) -> Iterator[Recorded]:
    for row in rows:
        at_s = (row.at_s - rows[0].at_s - replay.begin_s) / replay.speed
        if at_s < 0:
            continue
        if replay.duration_s is not None and at_s >= replay.duration_s:
            return
        yield Recorded(
            at_s=at_s,
            input_tokens=_length(row.input_tokens, replay.length_scale, replay.max_input_tokens),
            output_tokens=_length(row.output_tokens, replay.length_scale, replay.max_output_tokens),
            hashes=row.hashes,
        )


def _length(tokens: int, scale: float, most: int | None) -> int:
    scaled = max(1, round(tokens * scale))
    return scaled if most is None else min(scaled, most)
