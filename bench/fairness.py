"""Projects that compete for one server: one that floods it, and two that both want all.

One project sends ten times its share, another half of its own; how long the latter's answers take
is compared with what they take alone, before and after. Then two projects whose weights are 2 and
1 each send more than the server can do.
"""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from adapters.registry import Registry
from bench.arrivals import Arrival, OpenLoop, Outcome, poisson
from bench.goodput import PATIENCE_S, QUIET, burst, chat
from bench.harness import Report, at_least, at_most
from bench.overhead import distinct_prompts
from bench.servers import MODISTE, Launch, Server, free_port, running
from service.auth import REFRESH_S
from service.keys import Keys

SEQUENCES = 6
"""On two cores steps of up to six take about as long as steps of one, those of eight half as long
again: an answer beside others would be slower by that alone, whoever's turn it was."""
SHARE = 0.5
"""Of each of two projects with equal weights."""
FLOOD, LIGHT = 10 * SHARE, 0.5 * SHARE
BOTH = 2.0
WEIGHTS = {"two-thirds": 2.0, "one-third": 1.0}
SECONDS, SECONDS_SHORT = 90.0, 30.0
HEAD_S = 5.0
"""From the start of a flood until the queue is full; not counted."""


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Load the server and compare."""
    seconds = SECONDS_SHORT if short else SECONDS
    base = Registry.open().base()  # of the home that `make` uses
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    registry.add_base(base)
    with (
        running([_launch(registry.home.root)], folder / "logs") as (server,),
        OpenLoop() as callers,
    ):
        prompts = distinct_prompts()
        keys = _keys(registry)
        key = {"authorization": keys["light"]}
        burst(callers, server, prompts, SEQUENCES, **key)  # warm
        known = burst(callers, server, prompts, 4 * SEQUENCES, **key)
        turns = Turns(server, callers, keys, known.per_s, prompts)
        alone = turns.run({"light": LIGHT}, seconds, seed=1)["light"]
        beside = turns.run({"light": LIGHT, "flood": FLOOD}, seconds, seed=1)
        alone += turns.run({"light": LIGHT}, seconds, seed=2)["light"]
        both = turns.run(dict.fromkeys(WEIGHTS, BOTH), seconds, seed=3)
    _claim(report, alone, beside, both, seconds)


def _keys(registry: Registry) -> dict[str, str]:
    """The projects' headers; made when the server is up, for it is asked for its model without."""
    made = Keys(registry.database)
    names = ("light", "flood", *WEIGHTS)
    keys = {name: f"Bearer {made.create(name)[1]}" for name in names}
    time.sleep(2 * REFRESH_S)
    return keys


def _launch(home: Path) -> Launch:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODISTE_")}
    weights = ", ".join(f'"{name}": {weight}' for name, weight in WEIGHTS.items())
    environment |= QUIET | {
        "MODISTE_HOME": str(home), "MODISTE_WORKER_JOBS": "0",
        "MODISTE_PROJECT_WEIGHTS": "{" + weights + "}",
    }  # fmt: skip
    port = free_port()
    command = [MODISTE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    flags = ["--", "--max-num-seqs", str(SEQUENCES)]
    return Launch("modiste", [*command, *flags], environment, port, "/health/ready")


class Turns:
    """Loads of several projects, one load after the other."""

    def __init__(
        self, server: Server, callers: OpenLoop, keys: dict[str, str], per_s: float,
        prompts: Iterator[str],
    ) -> None:  # fmt: skip
        self._server, self._callers, self._keys = server, callers, keys
        self._per_s, self._prompts = per_s, prompts

    def run(self, loads: dict[str, float], seconds: float, seed: int) -> dict[str, list[Outcome]]:
        """What became of each project's requests that were due after the queue was full."""
        arrivals = sorted(
            (at_s, name)
            for number, (name, times) in enumerate(loads.items())
            for at_s in poisson(times * self._per_s, HEAD_S + seconds, seed + 100 * number)
        )
        sent = [
            Arrival(at_s, chat(self._server.model, next(self._prompts)), self._headers(name))
            for at_s, name in arrivals
        ]
        outcomes = self._callers.run(self._server.port, sent, PATIENCE_S)
        time.sleep(1.0)
        found: dict[str, list[Outcome]] = {name: [] for name in loads}
        for (at_s, name), outcome in zip(arrivals, outcomes, strict=True):
            if at_s >= HEAD_S:
                found[name].append(outcome)
        for name, its in found.items():
            done = sum(outcome.answered for outcome in its)
            print(f"{name}: {len(its)} asked, {done} answered", file=sys.stderr, flush=True)
        return found

    def _headers(self, name: str) -> dict[str, str]:
        return {"authorization": self._keys[name], "x-modiste-timeout-s": "10"}


def _claim(
    report: Report, alone: list[Outcome], beside: dict[str, list[Outcome]],
    both: dict[str, list[Outcome]], seconds: float,
) -> None:  # fmt: skip
    p95 = _p95(beside["light"]) / _p95(alone)
    report.add(at_most("p95 of a project beside one that floods, over that alone", p95, 1.5))
    lost = sum(not outcome.answered for outcome in beside["light"])
    report.add(at_most("requests of that project that were not answered", lost, 0))
    tokens = {name: _tokens(its, seconds) for name, its in both.items()}
    first, second = WEIGHTS
    shares = tokens[first] / tokens[second] / (WEIGHTS[first] / WEIGHTS[second])
    report.add(at_least("tokens of two that want all, over what their weights say", shares, 0.9))
    report.add(at_most("the same", shares, 1.1))
    rows = [("light", "alone", alone)]
    rows += [(name, "beside", its) for name, its in beside.items()]
    rows += [(name, "both", its) for name, its in both.items()]
    for name, when, its in rows:
        report.measurements.append(
            {
                "project": name, "when": when, "requests": len(its),
                "answered": sum(outcome.answered for outcome in its),
                "tokens in the time": _tokens(its, seconds), "p95 s": round(_p95(its), 2),
            }
        )  # fmt: skip


def _tokens(outcomes: list[Outcome], seconds: float) -> int:
    """Of answers that ended while all were still asking."""
    end = HEAD_S + seconds
    return sum(o.tokens for o in outcomes if o.end_s is not None and o.at_s + o.end_s <= end)


def _p95(outcomes: list[Outcome]) -> float:
    """Of the whole answers, in seconds."""
    took = [outcome.end_s for outcome in outcomes if outcome.answered and outcome.end_s is not None]
    return statistics.quantiles(took, n=20)[-1] if len(took) > 1 else float("nan")
