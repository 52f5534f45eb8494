"""The highest rate at which a server still meets a scenario's limits, and what stops it there."""

import argparse
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from loadtests.judging import LATE_ADVICE, Judgement, at_most
from loadtests.options import add_scenario, add_target, scenario_of, target_of
from loadtests.outcomes import Outcome, requests
from loadtests.page import document, table
from loadtests.run import Result, Target, run_scenario
from loadtests.saturation import first_full, levels
from loadtests.scenario import Scenario, ScenarioError
from loadtests.search import Found, Limits, search
from loadtests.tables import figures, judgement_lines
from loadtests.windows import Window, windows

LEAST_REQUESTS = 30
LONGEST_S = 300.0
LATE_TRIES = 3
GROWTH = 1.5
"""Of the requests in flight, from one third of a try to the next: more, and they pile up."""
SLACK = 2.0


class Tries:
    """The runs of a search, each at a steady rate."""

    def __init__(
        self, name: str, scenario: Scenario, target: Target, duration_s: float, folder: Path
    ) -> None:
        self._name, self._scenario, self._target = name, scenario, target
        self._duration_s, self._folder = duration_s, folder
        self._runs = 0
        self.results: list[tuple[Result, bool]] = []

    def passes(self, rate: float) -> bool:
        """Run at this rate. Raises RunError or ScenarioError.

        A run whose load generator was late says nothing of the server: it is done again.
        """
        for _ in range(LATE_TRIES):
            result, failed = self._once(rate)
            if all(judgement.advice != LATE_ADVICE for judgement in failed):
                break
        self.results.append((result, not failed))
        return not failed

    def _once(self, rate: float) -> tuple[Result, list[Judgement]]:
        """A run at this rate, and which limits failed."""
        number = self._runs = self._runs + 1
        duration_s = min(max(self._duration_s, LEAST_REQUESTS / rate), LONGEST_S)
        table = self._scenario.model_copy(update={"warmup_s": duration_s / 5})
        scenario = table.at_rate(rate, duration_s * 1.2, seed=self._scenario.seed + number)
        name = f"{self._name}-capacity-{number:02}"
        result = run_scenario(name, scenario, self._target, self._folder)
        failed = [one for one in (*result.judgements, piling(result)) if not one.holds]
        verdict = "holds" if not failed else "; ".join(judgement_lines(one)[0] for one in failed)
        print(f"{rate:.3g}/s: {verdict}", flush=True)
        return result, failed


def piling(result: Result) -> Judgement:
    """Whether requests pile up: then the rate is beyond the server, however it looks so far."""
    scenario = result.scenario
    third = (scenario.length_s - scenario.warmup_s) / 3
    edges = [scenario.warmup_s + third * number for number in range(1, 4)]
    before, after = windows(requests(result.outcomes), edges, scenario.slo.good)
    growth = after.in_flight / (before.in_flight + SLACK)
    return at_most("growth of the requests in flight", growth, GROWTH)


def main(arguments: list[str]) -> bool:
    """Search and tell; whether any rate holds."""
    options = _parser().parse_args(arguments)
    name, scenario = scenario_of(options)
    if scenario.replay is not None or not scenario.slo.model_fields_set:
        raise ScenarioError("capacity needs a scenario with limits in its slo, and no replay")
    target, folder = target_of(options), Path(options.out)
    limits = _limits(options, scenario)
    tries = Tries(name, scenario, target, options.duration_s, folder)
    found = search(tries.passes, limits)
    report = _report(name, found, tries.results)
    print("\n".join(report["lines"]))
    path = folder / f"{name}-capacity.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = path.with_suffix(".html")
    page.write_text(_page(name, report, tries.results), encoding="utf-8")
    print(f"report: {page}, {path}")
    return found.passing is not None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modiste loadtest capacity", description=__doc__)
    add_target(parser)
    add_scenario(parser)
    add = parser.add_argument
    add("--start", type=float, help="requests per second of the first try; default: the scenario's")
    add("--least", type=float, default=0.05, help="no rate below is tried")
    add("--most", type=float, default=1000.0, help="no rate above is tried")
    add("--duration-s", type=float, default=20.0, help="of a try at least")
    add("--precision", type=float, default=0.1, help="how near the limit is found, as a share")
    add("--confirm", type=int, default=2, help="so often the rate found must hold again")
    return parser


def _limits(options: argparse.Namespace, scenario: Scenario) -> Limits:
    rates = [stage.rate_per_s for stage in scenario.stages]
    start = options.start if options.start is not None else (min(rates) if rates else 1.0)
    if not 0 < options.least <= start <= options.most:
        raise ScenarioError(f"--least, --start, --most: {start:g} must lie between the two others")
    if options.precision <= 0 or options.duration_s <= 0 or options.confirm < 0:
        raise ScenarioError("--precision and --duration-s must be above 0, --confirm not below")
    return Limits(start, options.least, options.most, options.precision, options.confirm)


def _report(name: str, found: Found, results: Sequence[tuple[Result, bool]]) -> dict[str, Any]:
    runs = [result for result, _ in results]
    resource = first_full(runs)
    passing = [run for run, held in results if held and _rate(run) == found.passing]
    if passing:
        measured = figures(passing[-1])
        line = (
            f"capacity: {found.passing:.3g} requests/s, "
            f"{measured['output_tokens_per_s'] or 0:.0f} tokens/s out, "
            f"{measured['input_tokens_per_s'] or 0:.0f} tokens/s in, within the limits of {name}"
            f"{'' if found.confirmed else ' (not confirmed: too many tries)'}"
        )
    else:
        measured = {}
        line = f"capacity: no rate down to {min(map(_rate, runs)):.3g} requests/s holds the limits"
    lines = [line]
    if found.failing is not None:
        lines.append(f"saturates first: {resource.name} (fails at {found.failing:.3g}/s)")
        lines.append(f"advice: {resource.advice}")
    else:
        lines.append("nothing saturates up to --most")
    return {
        "scenario": name,
        "requests_per_s": found.passing,
        "fails_at_per_s": found.failing,
        "confirmed": found.confirmed,
        "saturates_first": resource.name if found.failing is not None else None,
        "figures": measured,
        "lines": lines,
    }


def _rate(run: Result) -> float:
    return run.scenario.stages[0].rate_per_s


def _page(name: str, report: dict[str, Any], results: Sequence[tuple[Result, bool]]) -> str:
    from loadtests import plots

    ordered = sorted(results, key=lambda pair: _rate(pair[0]))
    stretches = [_stretch(run) for run, _ in ordered]
    answered: list[Outcome] = [one for stretch in stretches for one in stretch.arrived]
    shown = [plots.throughput_over_concurrency(stretches)] if answered else []
    measures = ("ttft", "token_gap", "end_to_end") if answered else ()
    shown += [plots.latency_over_load(stretches, measure) for measure in measures]
    rows = []
    for run, held in ordered:
        found = figures(run)
        full = {one.name: f"{level:.2f}" for one, level in levels(run).items()}
        values = [
            "–" if (value := found[key]) is None else f"{value:.4g}"
            for key in ("requests_per_s", "goodput_per_s", "ttft_p95_ms", "end_to_end_p95_ms")
        ]
        told = ", ".join(f"{key} {level}" for key, level in full.items())
        rows.append((f"{_rate(run):.3g}", "holds" if held else "FAILS", *values, told))
    head = ("rate/s", "limits", "answered/s", "goodput/s", "TTFT p95", "whole p95, ms", "how full")
    lines = "".join(f"<p>{escape(line)}</p>" for line in report["lines"])
    parts = [f"<h1>Capacity: {escape(name)}</h1>{lines}", table(head, rows)]
    return document(f"Capacity: {name}", [*parts, f'<div class="plots">{"".join(shown)}</div>'])


def _stretch(run: Result) -> Window:
    edges = [run.scenario.warmup_s, run.scenario.length_s]
    return windows(requests(run.outcomes), edges, run.scenario.slo.good)[0]
