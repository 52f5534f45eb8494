"""Goodput under overload: answers in time, a second, at 0.5 to 4 times what a server can do.

Modiste and bare vLLM are up with the same base and flags; vLLM's bound of its own queue
(`--max-num-queued-reqs`) is the best of several, tried at 4 times. What a server can do is measured
with as many callers as it runs sequences; how long an answer takes then scales the objective:
2 s to the first token and 10 s to the last belong to a machine whose full engine answers in 5 s.
Callers hang up when the 10 s have passed. Loads alternate between the servers, in several rounds
whose medians count.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench.arrivals import Arrival, OpenLoop, Outcome, poisson
from bench.client import LoadError
from bench.harness import Report, at_least, paired_order
from bench.overhead import bare_launch, distinct_prompts, json_of, without_address, without_plugin
from bench.servers import MODISTE, Launch, Server, free_port, running

SEQUENCES = 8
TOKENS = 32
LOADS = (0.5, 1.0, 2.0, 4.0)
TTFT_S, END_S, FULL_S = 2.0, 10.0, 5.0
WAIT_SHARE = 0.5
"""Of the time to the first token: so long callers let a request wait; the rest is the engine's."""
QUEUES, QUEUES_SHORT = (1.0, 1.25, 1.5), (1.0, 1.25)
"""What vLLM's bound is tried with: running and waiting requests over those that run."""
SECONDS = 20.0
ROUNDS, ROUNDS_SHORT = 3, 1
"""Of all loads: the machine's own pace changes within minutes."""
PATIENCE_S = 120.0
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@dataclass(frozen=True)
class Objective:
    """What an answer must meet, in seconds."""

    ttft_s: float
    end_s: float

    def met_by(self, outcome: Outcome) -> bool:
        return (
            outcome.answered
            and outcome.ttft_s is not None
            and outcome.end_s is not None
            and outcome.ttft_s <= self.ttft_s
            and outcome.end_s <= self.end_s
        )


@dataclass(frozen=True)
class Full:
    """A server all of whose sequences run."""

    per_s: float
    answer_s: float

    def objective(self) -> Objective:
        scale = self.answer_s / FULL_S
        return Objective(TTFT_S * scale, END_S * scale)


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Load both servers and compare."""
    prompts = distinct_prompts()
    with running(launches(short=short), folder / "logs") as servers, OpenLoop() as callers:
        ours, *bare = servers
        for server in servers:
            burst(callers, server, prompts, SEQUENCES)  # warm
        known = burst(callers, ours, prompts, 4 * SEQUENCES)
        objective = known.objective()
        print(f"{known}, {objective}", file=sys.stderr, flush=True)
        load = Load(callers, prompts, objective, known.per_s)
        peer = max(bare, key=lambda server: load.met(load.send(server, LOADS[-1], 0)))
        found = load.all(ours, peer, ROUNDS_SHORT if short else ROUNDS)
    claim(report, found, known, objective, peer.label)


def launches(*, short: bool) -> list[Launch]:
    """Ours, and vLLM with each of the bounds."""
    environment = dict(os.environ) | QUIET
    port = free_port()
    flags = ["--", "--max-num-seqs", str(SEQUENCES)]
    serve = [MODISTE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    arguments = without_address(json_of([*serve, "--print", "args", *flags], environment))
    for_vllm = environment | without_plugin(json_of([*serve, "--print", "env"], environment))
    bounds = [round(SEQUENCES * share) for share in (QUEUES_SHORT if short else QUEUES)]
    return [
        Launch("modiste", [*serve, *flags], environment, port, "/health/ready"),
        *(
            bare_launch(
                f"vllm-{bound}", [*arguments, "--max-num-queued-reqs", str(bound)], for_vllm
            )
            for bound in bounds
        ),
    ]


def chat(model: str, prompt: str) -> dict[str, Any]:
    return {
        "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS,
        "ignore_eos": True, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def burst(
    callers: OpenLoop, server: Server, prompts: Iterator[str], count: int, **headers: str
) -> Full:
    """What a server does with so many requests that come at once. Raises LoadError."""
    arrivals = [
        Arrival(0.0, chat(server.model, prompt), headers) for prompt in islice(prompts, count)
    ]
    outcomes = callers.run(server.port, arrivals, PATIENCE_S)
    took = [outcome.end_s for outcome in outcomes if outcome.answered and outcome.end_s]
    if len(took) < count:
        raise LoadError(f"{server.label}: {len(took)} of {count} requests at once were answered")
    return Full(count / max(took), max(took) * SEQUENCES / count)


class Load:
    """Sends multiples of what a server can do."""

    def __init__(
        self, callers: OpenLoop, prompts: Iterator[str], objective: Objective, per_s: float
    ) -> None:
        self._callers, self._prompts, self._objective = callers, prompts, objective
        self._per_s = per_s

    def send(self, server: Server, times: float, seed: int) -> list[Outcome]:
        moments = list(poisson(times * self._per_s, SECONDS, seed))
        headers = {}
        if server.label == "modiste":
            headers = {"x-modiste-timeout-s": f"{self._objective.ttft_s * WAIT_SHARE:.3f}"}
        arrivals = [
            Arrival(at_s, chat(server.model, prompt), headers)
            for at_s, prompt in zip(moments, self._prompts, strict=False)
        ]
        outcomes = self._callers.run(server.port, arrivals, self._objective.end_s)
        time.sleep(1.0)  # what was hung up ends
        return outcomes

    def met(self, outcomes: Sequence[Outcome]) -> float:
        """Answers that met the objective, a second."""
        return sum(map(self._objective.met_by, outcomes)) / SECONDS

    def all(self, ours: Server, peer: Server, rounds: int) -> "Found":
        """Each load on both in each round, who is first in turn."""
        found: Found = {side: {times: Met() for times in LOADS} for side in ("modiste", "vllm")}
        for number, times in enumerate(LOADS * rounds):
            for side in paired_order(number + number // len(LOADS)):
                server, label = ((ours, "modiste"), (peer, "vllm"))[side]
                outcomes = self.send(server, times, seed=number)
                met = self.met(outcomes)
                found[label][times].rates.append(met)
                found[label][times].outcomes.extend(outcomes)
                print(f"{label} at {times:g}: {met:.2f}/s", file=sys.stderr, flush=True)
        return found


@dataclass(frozen=True)
class Met:
    """A server under a load: goodput in each round, and what became of each request."""

    rates: list[float] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


Found = dict[str, dict[float, Met]]
"""By server and load."""


def claim(report: Report, found: Found, known: Full, objective: Objective, peer: str) -> None:
    """Ours keeps its goodput; the peer's stands beside."""
    most = found["modiste"][LOADS[-1]]
    kept = most.rate / max(met.rate for met in found["modiste"].values())
    report.add(at_least("goodput at 4 times what the server can do, over its best", kept, 0.9))
    refused = [
        outcome.end_s
        for outcome in most.outcomes
        if outcome.status == 429 and outcome.end_s is not None
    ]
    report.add(at_least("refusals at 4 times", len(refused), 1))
    for label, loads in found.items():
        for times, met in loads.items():
            outcomes = met.outcomes
            report.measurements.append(
                {
                    "server": label if label == "modiste" else peer, "load": times,
                    "requests": len(outcomes), "in time/s": round(met.rate, 2),
                    "of its best": round(met.rate / max(m.rate for m in loads.values()), 2),
                    "answered": sum(outcome.answered for outcome in outcomes),
                    "refused": sum(outcome.status in (429, 503) for outcome in outcomes),
                    "TTFT p95 s": _p95([o.ttft_s for o in outcomes if o.ttft_s is not None]),
                    "answer p95 s": _p95([o.end_s for o in outcomes if o.answered and o.end_s]),
                }
            )  # fmt: skip
    report.measurements.append(
        {
            "sequences at once": SEQUENCES, "can do/s": round(known.per_s, 2),
            "objective TTFT s": round(objective.ttft_s, 2),
            "objective answer s": round(objective.end_s, 2),
            "refusal median ms": round(1000 * statistics.median(refused), 1) if refused else "—",
        }
    )  # fmt: skip


def _p95(values: Sequence[float]) -> float | str:
    return round(statistics.quantiles(values, n=20)[-1], 2) if len(values) > 1 else "—"
