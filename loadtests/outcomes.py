"""What came of every request, and the measures that follow from it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from loadtests.scenario import Good
from loadtests.streaming import Answer

MEASURES = {
    "ttft": "time to first token",
    "token_gap": "time between tokens",
    "end_to_end": "time to the whole answer",
}
BESIDE = frozenset({"batch", "promotion", "fine_tuning"})
"""Kinds of what went on beside the requests; they are counted and judged apart."""


@dataclass(frozen=True)
class Outcome:
    """One request."""

    kind: str
    arrived_s: float
    """Planned arrival, seconds from the start of the load."""
    late_ms: float
    """How long after it the load generator sent the request."""
    answer: Answer

    @property
    def failed(self) -> bool:
        return self.answer.error is not None

    @property
    def ended_s(self) -> float:
        """When its answer was whole, or it failed."""
        return self.arrived_s + self.answer.end_to_end_ms / 1000

    def is_good(self, good: Good) -> bool:
        """Whether its answer came, and as fast as it should."""
        answer = self.answer
        gap_ms = fmean(answer.gaps_ms) if answer.gaps_ms else None
        pairs = (
            (answer.ttft_ms, good.ttft_ms),
            (gap_ms, good.token_gap_ms),
            (answer.end_to_end_ms, good.end_to_end_ms),
        )
        slow = any(
            value is not None and bound is not None and value > bound for value, bound in pairs
        )
        return not self.failed and not slow


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """The inverse of dataclasses.asdict."""
    answer = dict(row["answer"])
    answer["gaps_ms"] = tuple(answer["gaps_ms"])
    return Outcome(row["kind"], row["arrived_s"], row["late_ms"], Answer(**answer))


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)


def read_outcomes(path: Path) -> list[Outcome]:
    """What write_outcomes wrote."""
    with path.open(encoding="utf-8") as file:
        return [outcome_of(json.loads(line)) for line in file]


def requests(outcomes: Iterable[Outcome], warmup_s: float = 0.0) -> list[Outcome]:
    """Those of callers, not of what went on beside them, from the warm-up on."""
    return [
        outcome
        for outcome in outcomes
        if outcome.kind not in BESIDE and outcome.arrived_s >= warmup_s
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that at least `percent` of the values don't exceed. Raises ValueError."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def measured(outcomes: Iterable[Outcome], measure: str) -> list[float]:
    """All samples of a measure (a key of MEASURES), in milliseconds."""
    answers = [outcome.answer for outcome in outcomes]
    if measure == "ttft":
        return [answer.ttft_ms for answer in answers if answer.ttft_ms is not None]
    if measure == "token_gap":
        return [gap for answer in answers for gap in answer.gaps_ms]
    return [answer.end_to_end_ms for answer in answers]


def output_tokens(outcomes: Iterable[Outcome]) -> int:
    return sum(outcome.answer.output_tokens or 0 for outcome in outcomes)


def input_tokens(outcomes: Iterable[Outcome]) -> int:
    return sum(outcome.answer.input_tokens or 0 for outcome in outcomes)


def error_kind(error: str) -> str:
    """What an error is, without what differs from request to request."""
    head, _, rest = error.partition(": ")
    code = rest.partition(":")[0]
    if head.startswith("HTTP ") and code and " " not in code:
        return f"{head}: {code}"
    return head if len(head) <= 60 else head[:59] + "…"
