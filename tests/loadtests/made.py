"""Scenarios, outcomes and runs, made for tests of what is done with them."""

from pathlib import Path
from typing import Any

from loadtests.judging import judge
from loadtests.outcomes import Outcome
from loadtests.run import Result
from loadtests.sampling import Sample
from loadtests.scenario import Scenario
from loadtests.streaming import Answer


def scenario(**changes: Any) -> Scenario:
    """Ten seconds of one arrival a second, unless it is said otherwise."""
    table = {"description": "", "mix": {"chat_stream": 1}, "slo": {}} | changes
    if not table.keys() & {"users", "shape", "replay"}:
        table.setdefault("arrivals", [{"rate_per_s": 1, "duration_s": 10}])
    return Scenario.model_validate(table)


def outcome(
    arrived_s: float = 5, error: str | None = None, *, kind: str = "chat_stream",
    late_ms: float = 0.0, **times: Any,
) -> Outcome:  # fmt: skip
    answer = Answer(200, times.pop("end", 100.0), error=error, **times)
    return Outcome(kind, arrived_s, late_ms, answer)


def result(
    made: Scenario, outcomes: list[Outcome], samples: list[Sample] | None = None, name: str = "load"
) -> Result:
    samples = samples or []
    judgements = judge(made, outcomes, None, samples)
    return Result(
        name, made, "http://host:1", "2026-01-01T00:00:00+00:00", {"modiste": "0.1.0"},
        outcomes, samples, judgements,
    )  # fmt: skip


MOONCAKE = (
    '{"timestamp": 1000, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 3000, "input_length": 1200, "output_length": 20, "hash_ids": [0, 1, 3]}\n'
    '{"timestamp": 2500, "input_length": 400, "output_length": 9000, "hash_ids": [7]}\n'
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,374,44\n"
    "2023-11-16 18:17:05.0319600,396,109\n"
)


def trace(folder: Path, text: str = MOONCAKE) -> str:
    path = folder / "trace"
    path.write_text(text)
    return str(path)
