"""The same scenario on two servers in alternation, as ratios with intervals.

Blocks go A B B A A B B A …: what drifts on the machines meets both alike. The ratio of each pair is
one measurement; the interval is a bootstrap over pairs.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from loadtests.history import version_of
from loadtests.options import add_scenario, add_target, scenario_of, target_of
from loadtests.run import Result, RunError, Target, run_scenario, server_version
from loadtests.scenario import OPENAI, Scenario, ScenarioError
from loadtests.tables import figures

MEASURES = {
    "requests_per_s": "answers per second",
    "output_tokens_per_s": "output tokens per second",
    "ttft_p50_ms": "time to first token, p50",
    "ttft_p95_ms": "time to first token, p95",
    "token_gap_p50_ms": "time between tokens, p50",
    "token_gap_p95_ms": "time between tokens, p95",
    "end_to_end_p50_ms": "time to the whole answer, p50",
    "end_to_end_p95_ms": "time to the whole answer, p95",
}
RESAMPLES = 4000
LEAST_PAIRS = 3


@dataclass(frozen=True)
class Ratio:
    """Of one measure, the first server's over the second's."""

    measure: str
    median: float
    low: float
    high: float
    """95 % bootstrap interval of the median."""
    pairs: int
    first: float
    second: float
    """Medians of both servers."""

    def line(self) -> str:
        return (
            f"{MEASURES[self.measure]}: {self.median:.3f} ({self.low:.3f} to {self.high:.3f}, "
            f"{self.pairs} pairs), medians {self.first:.4g} and {self.second:.4g}"
        )


def ratio_of(measure: str, pairs: Sequence[tuple[float, float]], seed: int = 0) -> Ratio:
    """pairs: the measure of both servers in each pair of blocks."""
    ratios = [first / second for first, second in pairs]
    generator = random.Random(seed)  # noqa: S311  # resamples
    medians = sorted(median(generator.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return Ratio(
        measure,
        median(ratios),
        medians[int(0.025 * RESAMPLES)],
        medians[int(0.975 * RESAMPLES) - 1],
        len(pairs),
        median(first for first, _ in pairs),
        median(second for _, second in pairs),
    )


def ratios(
    blocks: Sequence[tuple[Mapping[str, float | None], Mapping[str, float | None]]],
) -> list[Ratio]:
    """Of every measure that both servers have in all pairs."""
    found = []
    for measure in MEASURES:
        pairs = [
            (first[measure], second[measure])
            for first, second in blocks
            if first.get(measure) and second.get(measure)
        ]
        if pairs and len(pairs) == len(blocks):
            found.append(ratio_of(measure, pairs))  # type: ignore[arg-type]  # none is None
    return found


def main(arguments: list[str]) -> bool:
    """Compare and tell; whether every required ratio holds."""
    options = _parser().parse_args(arguments)
    name, scenario = scenario_of(options)
    required = [_requirement(text) for text in options.require]
    if options.pairs < LEAST_PAIRS:
        raise ScenarioError(f"--pairs: {options.pairs} give no interval; at least {LEAST_PAIRS}")
    first = target_of(options)
    second = replace(
        target_of(options, options.against),
        model=options.against_model,
        api_key=options.against_api_key,
    )
    told = [_checked(scenario, target) for target in (first, second)]
    folder = Path(options.out)
    blocks = alternate(name, scenario, (first, second), options.pairs, folder)
    found = ratios([(figures(one), figures(other)) for one, other in blocks])
    print(f"{first.host} ({told[0]}) over {second.host} ({told[1]}), {name}:")
    print("\n".join(ratio.line() for ratio in found))
    verdicts = [_judged(found, *one) for one in required]
    rows = [asdict(ratio) for ratio in found]
    result = {"scenario": name, "hosts": [first.host, second.host], "servers": told, "ratios": rows}
    path = folder / f"{name}-compare.json"
    path.write_text(
        json.dumps(result | {"holds": all(verdicts)}, indent=2) + "\n", encoding="utf-8"
    )
    print(f"report: {path}")
    return all(verdicts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modiste loadtest compare", description=__doc__)
    add_target(parser)
    add_scenario(parser)
    add = parser.add_argument
    add("--against", required=True, help="the other server's http://HOST:PORT")
    add("--against-model", help="its model; default: its first")
    add("--against-api-key", help="its key; default: none")
    add("--pairs", type=int, default=6, help="of blocks, one on each server")
    add(
        "--require",
        action="append",
        default=[],
        metavar="MEASURE=LEAST",
        help=f"exit 1 when the median ratio is below; one of {', '.join(MEASURES)}",
    )
    return parser


def _requirement(text: str) -> tuple[str, float]:
    measure, _, least = text.partition("=")
    try:
        if measure in MEASURES:
            return measure, float(least)
    except ValueError:
        pass
    raise ScenarioError(f"--require: {text!r}: give MEASURE=LEAST, as requests_per_s=0.95")


def _checked(scenario: Scenario, target: Target) -> str:
    """The server's version; other servers have OpenAI's routes alone."""
    server = server_version(target)
    other = scenario.kinds - OPENAI
    if other and "modiste" not in server:
        raise ScenarioError(
            f"mix: {target.host} answers OpenAI's routes alone, not {', '.join(sorted(other))}"
        )
    return version_of(server)


def alternate(
    name: str, scenario: Scenario, targets: tuple[Target, Target], pairs: int, folder: Path
) -> list[tuple[Result, Result]]:
    """Pairs of blocks, after one of each that only warms up. Raises RunError."""
    for place, target in enumerate(targets):
        _block(f"{name}-compare-warm-{'ab'[place]}", scenario, target, folder)
    done: list[tuple[Result, Result]] = []
    for pair in range(pairs):
        seeded = scenario.model_copy(update={"seed": scenario.seed + 1 + pair})
        # both have the same requests; A B in one pair, B A in the next
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        found = {
            place: _block(f"{name}-compare-{pair:02}-{'ab'[place]}", seeded, targets[place], folder)
            for place in order
        }
        done.append((found[0], found[1]))
        print(f"pair {pair + 1} of {pairs} done", flush=True)
    return done


def _block(name: str, scenario: Scenario, target: Target, folder: Path) -> Result:
    """One run; a block with many failures says nothing about speed."""
    result = run_scenario(name, scenario, target, folder)
    failing = [one for one in result.judgements if not one.holds and "failed" in one.limit]
    late = [one for one in result.judgements if not one.holds and one.advice]
    for judgement in (*failing, *late):
        raise RunError(f"{target.host}: {judgement.limit} is {judgement.value}: no comparison")
    return result


def _judged(found: Sequence[Ratio], measure: str, least: float) -> bool:
    ratio = next((one for one in found if one.measure == measure), None)
    value = None if ratio is None else ratio.median
    holds = value is not None and value >= least
    word = "holds" if holds else "FAILS"
    print(f"{word}: ratio of {measure}: {value} (>= {least:g})")
    return holds
