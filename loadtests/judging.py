"""A load against its limits.

Locust's own percentiles are rounded to two digits and mix warm-up with the rest, so limits are
judged on the outcomes themselves.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.outcomes import BESIDE, MEASURES, Outcome, measured, percentile, requests
from loadtests.plan import length_s
from loadtests.sampling import Sample, ratio
from loadtests.scenario import Scenario

SETTLED_S = 0.5
"""After a promotion; other replicas hear of it within a fifth of a second."""
LATE_ADVICE = (
    "the load generator was short of CPU, and these times are partly its own: "
    "give it more processes (--workers), a machine of its own, or a lower rate"
)
LOST_ADVICE = "a worker of the load generator was lost: see its log, then run again"


@dataclass(frozen=True)
class Judgement:
    """One limit. A value of None means that nothing was measured, which never holds."""

    limit: str
    value: float | None
    bound: float
    unit: str
    holds: bool
    at_least: bool = False
    """The bound is a lower one."""
    advice: str = ""
    """What to do where it doesn't hold."""


def at_most(limit: str, value: float | None, bound: float, unit: str = "") -> Judgement:
    return Judgement(limit, value, bound, unit, holds=value is not None and value <= bound)


def at_least(limit: str, value: float | None, bound: float, unit: str = "") -> Judgement:
    holds = value is not None and value >= bound
    return Judgement(limit, value, bound, unit, holds=holds, at_least=True)


def judge(
    scenario: Scenario,
    outcomes: Sequence[Outcome],
    planned: int | None = None,
    samples: Sequence[Sample] = (),
) -> list[Judgement]:
    """Every limit of the scenario against the outcomes after its warm-up.

    planned: how many requests an open loop was to send.
    """
    judged = requests(outcomes, scenario.warmup_s)
    return [
        *_answers(scenario, judged),
        *_times(scenario, judged),
        *_server(scenario, samples),
        *_schedule(scenario, requests(outcomes), planned),
        *_beside(outcomes),
        *_promotions(scenario, outcomes),
    ]


def _answers(scenario: Scenario, judged: Sequence[Outcome]) -> Iterator[Judgement]:
    slo = scenario.slo
    count = len(judged)
    failed = sum(outcome.failed for outcome in judged)
    good = sum(outcome.is_good(slo.good) for outcome in judged)
    time_s = length_s(scenario) - scenario.warmup_s
    yield at_most("share of failed requests", failed / count if count else None, slo.error_ratio)
    if slo.requests_per_s is not None:
        rate = (count - failed) / time_s
        yield at_least("answers per second", rate, slo.requests_per_s, "/s")
    if slo.goodput_ratio is not None:
        share = good / count if count else None
        yield at_least("share of requests with good answers", share, slo.goodput_ratio)
    if slo.goodput_per_s is not None:
        yield at_least("good answers per second", good / time_s, slo.goodput_per_s, "/s")


def _times(scenario: Scenario, judged: Sequence[Outcome]) -> Iterator[Judgement]:
    answered = [outcome for outcome in judged if not outcome.failed]
    for name, bound in scenario.slo.model_dump(exclude_none=True, exclude={"good"}).items():
        match = re.fullmatch(r"(\w+)_p(\d+)_ms", name)
        if match is None:
            continue
        measure, percent = match[1], int(match[2])
        samples = measured(answered, measure)
        value = percentile(samples, percent) if samples else None
        yield at_most(f"{MEASURES[measure]}, p{percent}", value, bound, "ms")
    if scenario.slo.drift_ratio is not None:
        value = _drift(scenario, answered)
        yield at_most(
            "last quarter's median time over the first's", value, scenario.slo.drift_ratio
        )


def _drift(scenario: Scenario, answered: Sequence[Outcome]) -> float | None:
    """By quarters of time, not of requests: a shape's peak is not taken for its end."""
    begin, end = scenario.warmup_s, length_s(scenario)
    quarter = (end - begin) / 4
    first = [one for one in answered if one.arrived_s < begin + quarter]
    last = [one for one in answered if one.arrived_s >= end - quarter]
    if not first or not last:
        return None
    return percentile(measured(last, "end_to_end"), 50) / percentile(
        measured(first, "end_to_end"), 50
    )


def _server(scenario: Scenario, samples: Sequence[Sample]) -> Iterator[Judgement]:
    if scenario.slo.cached_ratio is not None:
        hits = ratio(
            [sample for sample in samples if sample.at_s >= scenario.warmup_s],
            "prefix_hits",
            "prefix_queries",
        )
        yield at_least(
            "share of prompt tokens from the prefix cache", hits, scenario.slo.cached_ratio
        )


def _schedule(
    scenario: Scenario, sent: Sequence[Outcome], planned: int | None
) -> Iterator[Judgement]:
    """Whether the load was the one that was asked for. A closed loop has no schedule."""
    if not scenario.open_loop:
        return
    bound = scenario.schedule.late_ms
    late = sum(outcome.late_ms > bound for outcome in sent)
    yield _advised(
        at_most(
            f"share of requests sent over {bound:g} ms late",
            late / len(sent) if sent else None,
            scenario.schedule.late_ratio,
        ),
        LATE_ADVICE,
    )
    if planned is not None:
        missing = float(abs(planned - len(sent)))
        yield _advised(at_most("planned requests without an outcome", missing, 0), LOST_ADVICE)


def _beside(outcomes: Sequence[Outcome]) -> Iterator[Judgement]:
    for kind in sorted(BESIDE):
        done = [outcome for outcome in outcomes if outcome.kind == kind]
        if done:
            failed = float(sum(outcome.failed for outcome in done))
            yield at_most(f"failed of {len(done)} × {kind} beside", failed, 0)


def _promotions(scenario: Scenario, outcomes: Sequence[Outcome]) -> Iterator[Judgement]:
    """Whether what was asked between two promotions was answered by the version then live."""
    asked = scenario.beside.promotions
    if asked is None or isinstance(scenario.models, dict):
        return
    aliased = {f"{asked.adapter}@{asked.alias}"}
    if asked.alias == "production":
        aliased.add(asked.adapter)
    if not scenario.models or not set(scenario.models) <= aliased:
        return
    moves = [outcome for outcome in outcomes if outcome.kind == "promotion"]
    sent = [outcome for outcome in requests(outcomes) if outcome.answer.model is not None]
    checked = wrong = 0
    for move, following in zip(moves, [*moves[1:], None], strict=True):
        end_s = math.inf if following is None else following.arrived_s
        for outcome in sent if not move.failed else ():
            if move.ended_s + SETTLED_S < outcome.arrived_s + outcome.late_ms / 1000 < end_s:
                checked += 1
                wrong += outcome.answer.model != move.answer.model
    if checked:
        yield at_most(f"of {checked} answers, by a version that was not live", float(wrong), 0)


def _advised(judgement: Judgement, advice: str) -> Judgement:
    if judgement.holds:
        return judgement
    return Judgement(**{**vars(judgement), "advice": advice})
