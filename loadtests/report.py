"""What a run leaves behind: figures as JSON, a line of history, and a page with plots."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from loadtests import history
from loadtests.judging import Judgement
from loadtests.outcomes import BESIDE, Outcome, measured, output_tokens, percentile, requests
from loadtests.page import document, table
from loadtests.plan import length_s
from loadtests.run import Result
from loadtests.tables import as_json
from loadtests.windows import edges, windows

HISTORY = "history.jsonl"
_COLUMNS = (
    ("offered_per_s", "offered/s"),
    ("requests_per_s", "answered/s"),
    ("goodput_per_s", "goodput/s"),
    ("output_tokens_per_s", "tokens/s out"),
    ("ttft_p95_ms", "TTFT p95, ms"),
    ("token_gap_p95_ms", "gap p95, ms"),
    ("end_to_end_p95_ms", "whole p95, ms"),
    ("queue_ms", "queue, ms"),
    ("error_ratio", "failed"),
)


def write_report(result: Result, folder: Path, html: Path) -> None:
    """NAME.json, a line in history.jsonl, and the page."""
    run = as_json(result)
    text = json.dumps(run, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{result.name}.json").write_text(text, encoding="utf-8")
    history.append(folder / HISTORY, run)
    html.parent.mkdir(parents=True, exist_ok=True)
    runs = history.read(folder / HISTORY, result.name)
    html.write_text(page(result, runs), encoding="utf-8")


def page(result: Result, runs: Sequence[Mapping[str, Any]]) -> str:
    """One HTML page that needs nothing else; `runs` are this scenario's, the last one this."""
    verdict = "every limit holds" if result.holds else '<span class="fails">a limit fails</span>'
    about = (
        f"{escape(result.host)}, {escape(history.version_of(result.server))}, "
        f"{escape(result.began)}, {length_s(result.scenario):g} s"
    )
    parts = [
        f"<h1>{escape(result.name)}: {verdict}</h1>",
        f"<p>{escape(result.scenario.description)}</p><p>{about}</p>",
        "<h2>Limits</h2>",
        table(("limit", "value", "bound", ""), map(_limit_row, result.judgements)),
        "<h2>Requests by kind</h2>",
        _kinds(result),
        _beside(result.outcomes),
        f'<div class="plots">{"".join(_plots(result))}</div>',
        "<h2>Errors by kind</h2>",
        _errors(result),
        "<h2>Runs of this scenario</h2>",
        table(
            ("began", "version", "host", "limits", *(words for _, words in _COLUMNS)),
            map(_run_row, runs),
        ),
    ]
    return document(result.name, parts)


def _plots(result: Result) -> Iterable[str]:
    from loadtests import plots

    scenario = result.scenario
    sent = requests(result.outcomes, scenario.warmup_s)
    answered = [outcome for outcome in sent if not outcome.failed]
    if not answered:
        return
    stretches = windows(requests(result.outcomes), edges(scenario), scenario.slo.good)
    yield plots.latency_by_percentile(answered)
    for measure in ("ttft", "end_to_end"):
        if measured(answered, measure):
            yield plots.latency_over_load(stretches, measure)
    yield plots.throughput_over_concurrency(stretches)
    yield plots.rates_over_time(stretches)
    if result.samples:
        yield plots.server_over_time(result.samples)


def _limit_row(judgement: Judgement) -> tuple[str, ...]:
    value = "nothing measured" if judgement.value is None else f"{judgement.value:.4g}"
    sign = "≥" if judgement.at_least else "≤"
    holds = "holds" if judgement.holds else f"FAILS {judgement.advice}"
    return judgement.limit, value, f"{sign} {judgement.bound:g} {judgement.unit}", holds


def _kinds(result: Result) -> str:
    sent = requests(result.outcomes, result.scenario.warmup_s)
    rows = []
    for kind in sorted({outcome.kind for outcome in sent}):
        of_kind = [outcome for outcome in sent if outcome.kind == kind]
        answered = [outcome for outcome in of_kind if not outcome.failed]
        times = [
            "/".join(f"{percentile(samples, percent):.0f}" for percent in (50, 95, 99))
            if (samples := measured(answered, measure))
            else "–"
            for measure in ("ttft", "token_gap", "end_to_end")
        ]
        counts = (len(of_kind), len(of_kind) - len(answered), output_tokens(answered))
        rows.append((kind, *map(str, counts), *times))
    head = ("kind", "requests", "failed", "tokens out", "first token", "gap", "whole")
    return "<p>Times are p50/p95/p99 in ms.</p>" + table(head, rows)


def _beside(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (
            outcome.kind, outcome.answer.model or "–", f"{outcome.arrived_s:.1f}",
            f"{outcome.answer.end_to_end_ms / 1000:.2f}", outcome.answer.error or "done",
        )
        for outcome in outcomes
        if outcome.kind in BESIDE
    ]  # fmt: skip
    if not rows:
        return ""
    return "<h2>Beside the requests</h2>" + table(("what", "model", "at s", "s", ""), rows)


def _errors(result: Result) -> str:
    run = as_json(result)["errors"]
    if not run:
        return "<p>None.</p>"
    return table(("kind", "requests"), [(row["error"], str(row["count"])) for row in run])


def _run_row(run: Mapping[str, Any]) -> tuple[str, ...]:
    holds = "hold" if run["holds"] else "FAIL"
    values = [run["figures"].get(name) for name, _ in _COLUMNS]
    shown = ["–" if value is None else f"{value:.4g}" for value in values]
    return str(run["began"]), str(run["version"]), str(run["host"]), holds, *shown
