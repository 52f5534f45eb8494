"""The figures of a run, as the terminal, the JSON and the page show them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loadtests.judging import Judgement
from loadtests.outcomes import (
    BESIDE,
    MEASURES,
    Outcome,
    error_kind,
    input_tokens,
    measured,
    output_tokens,
    percentile,
    requests,
)
from loadtests.plan import length_s
from loadtests.run import Result
from loadtests.sampling import cpu_cores, mean, queue_time_ms, ratio

PERCENTS = (50, 95, 99)


def figures(result: Result) -> dict[str, float | None]:
    """The main figures, after the warm-up, by names that stay the same between versions."""
    scenario = result.scenario
    judged = requests(result.outcomes, scenario.warmup_s)
    answered = [outcome for outcome in judged if not outcome.failed]
    time_s = length_s(scenario) - scenario.warmup_s
    found: dict[str, float | None] = {
        "offered_per_s": len(judged) / time_s,
        "requests_per_s": len(answered) / time_s,
        "goodput_per_s": sum(one.is_good(scenario.slo.good) for one in judged) / time_s,
        "output_tokens_per_s": output_tokens(answered) / time_s,
        "input_tokens_per_s": input_tokens(answered) / time_s,
        "error_ratio": 1 - len(answered) / len(judged) if judged else None,
    }
    for measure in MEASURES:
        samples = measured(answered, measure)
        for percent in PERCENTS:
            value = percentile(samples, percent) if samples else None
            found[f"{measure}_p{percent}_ms"] = value
    told = result.samples
    return found | {
        "queue_ms": queue_time_ms(told),
        "api_cpu_cores": cpu_cores(told),
        "kv_usage": mean(told, "kv_usage"),
        "cached_ratio": ratio(told, "prefix_hits", "prefix_queries"),
    }


def as_json(result: Result) -> dict[str, Any]:
    """A run, but its single requests."""
    return {
        "scenario": result.name,
        "description": result.scenario.description,
        "host": result.host,
        "began": result.began,
        "server": dict(result.server),
        "holds": result.holds,
        "limits": [asdict(judgement) for judgement in result.judgements],
        "figures": figures(result),
        "errors": [{"error": error, "count": count} for error, count in errors(result.outcomes)],
    }


def errors(outcomes: Sequence[Outcome]) -> list[tuple[str, int]]:
    """Kinds of request and error, the commonest first."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.answer.error is not None:
            key = f"{outcome.kind}: {error_kind(outcome.answer.error)}"
            counts[key] = counts.get(key, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def summary(result: Result) -> str:
    """The result in words, for a terminal."""
    scenario, outcomes = result.scenario, requests(result.outcomes)
    answered = [outcome for outcome in outcomes if not outcome.failed]
    loop = "open loop" if scenario.open_loop else "closed loop: times hide waiting before sending"
    lines = [
        f"{len(outcomes)} requests in {length_s(scenario):g} s ({loop}), "
        f"{len(outcomes) - len(answered)} failed, {output_tokens(answered)} tokens out",
    ]
    for measure, words in MEASURES.items():
        samples = measured(answered, measure)
        if samples:
            shown = ", ".join(f"p{p} {percentile(samples, p):.1f}" for p in PERCENTS)
            lines.append(f"{words}: {shown} ms")
    lines += [*_server_lines(result), *_beside_lines(result.outcomes)]
    lines += [line for judgement in result.judgements for line in judgement_lines(judgement)]
    return "\n".join([*lines, *_error_lines(result.outcomes)])


def _server_lines(result: Result) -> list[str]:
    found = figures(result)
    shown = [
        f"{words} {found[name]:.3g}{unit}"
        for name, words, unit in (
            ("queue_ms", "mean queue time", " ms"),
            ("api_cpu_cores", "API process", " cores"),
            ("kv_usage", "KV cache in use", ""),
            ("cached_ratio", "prefix-cache hits", ""),
        )
        if found[name] is not None
    ]
    return [f"the server says: {', '.join(shown)}"] if shown else []


def _beside_lines(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for kind in sorted(BESIDE):
        times = [one.answer.end_to_end_ms for one in outcomes if one.kind == kind]
        if times:
            longest = max(times) / 1000
            lines.append(f"beside: {len(times)} × {kind}, the longest took {longest:.2f} s")
    return lines


def judgement_lines(judgement: Judgement) -> list[str]:
    """One limit, and what to do where it doesn't hold."""
    word = "holds" if judgement.holds else "FAILS"
    value = "nothing measured" if judgement.value is None else f"{judgement.value:.4g}"
    sign = ">=" if judgement.at_least else "<="
    unit = f" {judgement.unit}" if judgement.unit else ""
    line = f"{word}: {judgement.limit}: {value} ({sign} {judgement.bound:g}{unit})"
    return [line, f"  {judgement.advice}"] if judgement.advice else [line]


def _error_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The commonest kinds of failure, each with one whole message."""
    examples = {
        f"{outcome.kind}: {error_kind(outcome.answer.error)}": outcome.answer.error
        for outcome in reversed(outcomes)
        if outcome.answer.error is not None
    }
    return [
        f"failed {count} times: {key.partition(':')[0]}: {examples[key]}"
        for key, count in errors(outcomes)[:5]
    ]
