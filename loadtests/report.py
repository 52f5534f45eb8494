"""What came of a load: every request's outcome, the limits judged, a summary in words.

Locust's own percentiles are rounded to two digits and mix warm-up with the rest, so limits are
judged on the outcomes themselves.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.scenario import Scenario
from loadtests.streaming import Answer

LATE_MS = 50.0
MEASURES = {
    "ttft": "time to first token",
    "token_gap": "time between tokens",
    "end_to_end": "time to the whole answer",
}


@dataclass(frozen=True)
class Outcome:
    """One request."""

    kind: str
    arrived_s: float
    """Planned arrival, seconds from the start of the load."""
    late_ms: float
    """How long after it the load generator sent the request."""
    answer: Answer


@dataclass(frozen=True)
class Judgement:
    """One limit. A value of None means that nothing was measured, which never holds."""

    limit: str
    value: float | None
    bound: float
    unit: str
    holds: bool


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)


def read_outcomes(path: Path) -> list[Outcome]:
    """What write_outcomes wrote."""
    outcomes = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = row.pop("answer")
        answer["gaps_ms"] = tuple(answer["gaps_ms"])
        outcomes.append(Outcome(answer=Answer(**answer), **row))
    return outcomes


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that at least `percent` of the values don't exceed. Raises ValueError."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def judge(scenario: Scenario, outcomes: Sequence[Outcome]) -> list[Judgement]:
    """Every limit of the scenario against the outcomes after its warm-up."""
    judged = [outcome for outcome in outcomes if outcome.arrived_s >= scenario.warmup_s]
    good = [outcome for outcome in judged if outcome.answer.error is None]
    judgements = [_errors(scenario.slo.error_ratio, judged)]
    if scenario.slo.requests_per_s is not None:
        rate = len(good) / (scenario.length_s - scenario.warmup_s)
        bound = scenario.slo.requests_per_s
        judgements.append(
            Judgement("good answers per second", rate, bound, "/s", holds=rate >= bound)
        )
    for name, bound in scenario.slo.model_dump(exclude_none=True).items():
        match = re.fullmatch(r"(\w+)_p(\d+)_ms", name)
        if match is None:
            continue
        measure, percent = match[1], int(match[2])
        samples = measured(good, measure)
        value = percentile(samples, percent) if samples else None
        holds = value is not None and value <= bound
        judgements.append(
            Judgement(f"{MEASURES[measure]}, p{percent}", value, bound, "ms", holds=holds)
        )
    return judgements


def _errors(bound: float, judged: Sequence[Outcome]) -> Judgement:
    if not judged:
        return Judgement("share of failed requests", None, bound, "", holds=False)
    ratio = sum(outcome.answer.error is not None for outcome in judged) / len(judged)
    return Judgement("share of failed requests", ratio, bound, "", holds=ratio <= bound)


def measured(outcomes: Iterable[Outcome], measure: str) -> list[float]:
    """All samples of a measure (a key of MEASURES), in milliseconds."""
    answers = [outcome.answer for outcome in outcomes]
    if measure == "ttft":
        return [answer.ttft_ms for answer in answers if answer.ttft_ms is not None]
    if measure == "token_gap":
        return [gap for answer in answers for gap in answer.gaps_ms]
    return [answer.end_to_end_ms for answer in answers]


def summary(
    scenario: Scenario, outcomes: Sequence[Outcome], judgements: Sequence[Judgement]
) -> str:
    """The result in words, for a terminal."""
    good = [outcome for outcome in outcomes if outcome.answer.error is None]
    tokens = sum(outcome.answer.output_tokens or 0 for outcome in good)
    loop = "open loop" if scenario.arrivals else "closed loop: times hide waiting before sending"
    lines = [
        f"{len(outcomes)} requests in {scenario.length_s:g} s ({loop}), "
        f"{len(outcomes) - len(good)} failed, {tokens} tokens out",
    ]
    for measure, words in MEASURES.items():
        samples = measured(good, measure)
        if samples:
            shown = ", ".join(f"p{p} {percentile(samples, p):.1f}" for p in (50, 95, 99))
            lines.append(f"{words}: {shown} ms")
    late = percentile([outcome.late_ms for outcome in outcomes], 99) if outcomes else 0.0
    if late > LATE_MS:
        lines.append(
            f"note: the load generator was {late:.0f} ms late (p99): it was short of CPU, "
            "and these times are partly its own"
        )
    lines += [_judgement_line(judgement) for judgement in judgements]
    return "\n".join([*lines, *_error_lines(outcomes)])


def _judgement_line(judgement: Judgement) -> str:
    word = "holds" if judgement.holds else "FAILS"
    value = "nothing measured" if judgement.value is None else f"{judgement.value:.4g}"
    sign = ">=" if judgement.unit == "/s" else "<="
    unit = f" {judgement.unit}" if judgement.unit else ""
    return f"{word}: {judgement.limit}: {value} ({sign} {judgement.bound:g}{unit})"


def _error_lines(outcomes: Sequence[Outcome]) -> list[str]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.answer.error is not None:
            key = f"{outcome.kind}: {outcome.answer.error}"
            counts[key] = counts.get(key, 0) + 1
    common = sorted(counts.items(), key=lambda item: -item[1])[:5]
    return [f"failed {count} times: {error}" for error, count in common]
