"""What the load generator adds to the times that it measures.

A stand-in server answers at known times and notes when it really wrote them. What the load
generator measures beyond that is its own: connecting, sending, noticing, parsing.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.outcomes import Outcome, measured, percentile, requests
from loadtests.run import Target, run_scenario
from loadtests.scenario import Scenario, ScenarioError
from loadtests.streaming import Client

BOUND = 0.10


@dataclass(frozen=True)
class Added:
    """One measure at one rate; milliseconds."""

    rate_per_s: float
    measure: str
    percent: int
    measured_ms: float
    really_ms: float

    @property
    def share(self) -> float:
        """Of the measured time, what is the load generator's."""
        return (self.measured_ms - self.really_ms) / self.measured_ms

    @property
    def holds(self) -> bool:
        return self.share <= BOUND

    def line(self) -> str:
        word = "holds" if self.holds else "FAILS"
        return (
            f"{word}: {self.rate_per_s:g}/s, {self.measure} p{self.percent}: measured "
            f"{self.measured_ms:.2f} ms, really {self.really_ms:.2f} ms, "
            f"added {self.share:.1%} (<= {BOUND:.0%})"
        )


def main(arguments: list[str]) -> bool:
    """Measure at each rate; whether the share stays within its bound at all of them."""
    options = _parser().parse_args(arguments)
    try:
        rates = [float(rate) for rate in options.rates.split(",")]
    except ValueError as error:
        raise ScenarioError(f"--rates: {options.rates!r}: give numbers, as 20,50") from error
    found: list[Added] = []
    with stand_in() as host:
        for rate in rates:
            added = at_rate(host, rate, options.duration_s, Path(options.out))
            found += added
            print("\n".join(one.line() for one in added), flush=True)
    holding = [rate for rate in rates if all(one.holds for one in found if one.rate_per_s == rate)]
    if holding:
        print(
            f"one process keeps within {BOUND:.0%} up to {max(holding):g} requests/s (of {rates})"
        )
    rows = [{**asdict(one), "share": one.share, "holds": one.holds} for one in found]
    Path(options.out, "overhead.json").write_text(json.dumps(rows, indent=2) + "\n")
    return len(holding) == len(rates)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modiste loadtest overhead", description=__doc__)
    parser.add_argument("--rates", default="20,50", help="requests per second, with commas")
    parser.add_argument("--duration-s", type=float, default=10.0, help="at each rate")
    parser.add_argument("--out", default="build/loadtest", help="folder of the reports")
    return parser


@contextmanager
def stand_in(*arguments: str) -> Iterator[str]:
    """The stand-in's URL; it runs while the block does."""
    command = [sys.executable, "-m", "loadtests.standin", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout is not None else ""
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def at_rate(host: str, rate_per_s: float, duration_s: float, folder: Path) -> list[Added]:
    """Send streamed chats at this rate and compare both sides' times."""
    scenario = Scenario.model_validate(
        {
            "description": "the load generator itself",
            "arrivals": [{"rate_per_s": rate_per_s, "duration_s": duration_s}],
            "mix": {"chat_stream": 1},
            "slo": {},
        }
    )
    client = Client(host, api_key=None, connections=1, timeout_s=10)
    client.ask("GET", "/times")
    target = Target(host, sample_s=0)
    result = run_scenario(f"overhead-{rate_per_s:g}", scenario, target, folder)
    really = client.ask("GET", "/times")
    sent = [outcome for outcome in requests(result.outcomes) if not outcome.failed]
    return [
        *_compared(rate_per_s, "ttft", sent, really["first_ms"]),
        *_compared(rate_per_s, "end_to_end", sent, really["end_ms"]),
    ]


def _compared(
    rate_per_s: float, measure: str, sent: Sequence[Outcome], really: Sequence[float]
) -> Iterator[Added]:
    for percent in (50, 95):
        ours = percentile(measured(sent, measure), percent)
        yield Added(rate_per_s, measure, percent, ours, percentile(really, percent))
