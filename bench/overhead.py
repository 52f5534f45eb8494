"""What Modiste costs over bare vLLM: the same base, the same flags, loaded in alternation.

Both servers are up the whole time and one is loaded at a time, after the other has come to rest,
in the order AB, BA, AB, … over 1, 8 and 32 concurrent chat requests: streamed, temperature 0, a
fixed number of tokens, no prompt twice. Throughput and time to first token are judged on a real
base, where the model sets the pace; the front end's CPU time on a tiny random one, where the
front end does, in many short blocks, since a CPU second costs more while neighbours are busy.

A report of its own, `overhead-edge`, does the same at 64 concurrent with all of Modiste's edge on:
keys, limits, admission, metrics and a line of JSON in the log for each request.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from bench.client import LoadClient, LoadError
from bench.guarded import guarded, key_headers
from bench.harness import (
    RESULTS,
    Report,
    at_least,
    at_most,
    bootstrap_interval,
    paired_order,
    quick,
)
from bench.rest import PAUSE_S, with_rest
from bench.servers import MODISTE, Launch, Server, ServerError, free_port, running
from loadtests.workload import read_passages

VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
PROMPT_WORDS = (8, 24)
PAIRS_A_LINE = 4
MOST_IDLE = 0.03
"""Of a core; vLLM's worker alone takes 0.02, since its queue looks a thousand times a second."""


@dataclass(frozen=True)
class Plan:
    """How much is sent."""

    requests: dict[int, int]
    """Requests in a block, by how many run at once."""
    pairs: int
    """Pairs of blocks at each concurrency."""
    quick_pairs: int
    """The same in the short form."""
    pause_s: float
    """Before each block: the other server's worker spins for a while after its last step."""
    max_tokens: int = 16


REAL_PLAN = Plan({1: 4, 8: 16, 32: 64}, pairs=20, quick_pairs=8, pause_s=1.2)
TINY_PLAN = Plan({1: 4, 8: 8, 32: 32}, pairs=120, quick_pairs=40, pause_s=PAUSE_S)
EDGE_PLAN = Plan({64: 128}, pairs=60, quick_pairs=20, pause_s=PAUSE_S)


@dataclass(frozen=True)
class Block:
    """What one server did with one block."""

    requests_per_s: float
    ttft_ms: float
    """Median over the block."""
    api_cpu_ms: float
    """CPU time of the API process, a request."""
    idle_share: float
    """What the other server used meanwhile, as a share of one core."""


@dataclass(frozen=True)
class Pair:
    """The same block on both servers."""

    concurrency: int
    bare: Block
    ours: Block

    @property
    def throughput_ratio(self) -> float:
        return self.ours.requests_per_s / self.bare.requests_per_s

    @property
    def ttft_ratio(self) -> float:
        return self.ours.ttft_ms / self.bare.ttft_ms

    @property
    def extra_cpu_ms(self) -> float:
        return self.ours.api_cpu_ms - self.bare.api_cpu_ms


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    options = _parser().parse_args(argv)
    codes = []
    if options.only != "edge":
        codes.append(_reported("overhead", _run, options))
    if options.only in (None, "edge"):
        codes.append(_reported("overhead-edge", _run_edge, options))
    return max(codes)


def _reported(
    name: str, run: Callable[[Report, argparse.Namespace], None], options: argparse.Namespace
) -> int:
    report = Report(f"{name}-against-itself" if options.against_itself else name)
    try:
        run(report, options)
    except (ServerError, LoadError) as error:
        print(error, file=sys.stderr)
        return 1
    return report.write()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench overhead", description=__doc__)
    parser.add_argument("--base", help="the real base, by its name; default: the default base")
    parser.add_argument(
        "--only",
        choices=["tiny", "real", "edge"],
        help="measure one of the two bases only, or the edge",
    )
    parser.add_argument("--pairs", type=int, help="pairs of blocks at each concurrency")
    parser.add_argument(
        "--against-itself",
        action="store_true",
        help="bare vLLM against itself: tells the noise of the machine",
    )
    return parser


def _run(report: Report, options: argparse.Namespace) -> None:
    itself = options.against_itself
    if options.only != "tiny":
        launches = contenders(options.base, dict(os.environ), itself=itself)
        pairs = measure(launches, _plan(REAL_PLAN, options))
        claim_ratios(report, pairs)
        claim_idle(report, pairs, "real base")
        note(report, "real base", pairs)
    if options.only != "real":
        environment = with_rest(tiny_home(RESULTS / "home"), RESULTS / "rest")
        launches = contenders("tiny", environment, itself=itself)
        pairs = measure(launches, _plan(TINY_PLAN, options))
        claim_cpu(report, pairs)
        claim_idle(report, pairs, "tiny base")
        note(report, "tiny base", pairs)


def _run_edge(report: Report, options: argparse.Namespace) -> None:
    home = RESULTS / "edge-home"
    environment = guarded(with_rest(tiny_home(home), RESULTS / "rest"))
    launches = contenders("tiny", environment, itself=options.against_itself)
    pairs = measure(launches, _plan(EDGE_PLAN, options), lambda: key_headers(home))
    claim_throughput(report, pairs)
    claim_cpu(report, pairs)
    claim_idle(report, pairs, "tiny base, edge")
    note(report, "tiny base, edge", pairs)


def _plan(plan: Plan, options: argparse.Namespace) -> Plan:
    pairs = plan.quick_pairs if quick() else plan.pairs
    return replace(plan, pairs=pairs if options.pairs is None else options.pairs)


def contenders(base: str | None, environment: dict[str, str], *, itself: bool) -> list[Launch]:
    """Bare vLLM and Modiste, with the arguments and the environment that Modiste gives vLLM.

    itself: bare vLLM twice instead.
    """
    environment = _quiet(environment)
    port = free_port()
    serve = [MODISTE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    if base is not None:
        serve += ["--base", base]
    arguments = without_address(json_of([*serve, "--print", "args"], environment))
    for_vllm = environment | without_plugin(json_of([*serve, "--print", "env"], environment))
    bare = bare_launch("vllm", arguments, for_vllm)
    if itself:
        return [bare, bare_launch("vllm-again", arguments, for_vllm)]
    return [bare, Launch("modiste", serve, environment, port, "/health/ready")]


def bare_launch(label: str, arguments: Sequence[str], environment: dict[str, str]) -> Launch:
    """vLLM's own server with these arguments (model first)."""
    port = free_port()
    command = [*VLLM, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    return Launch(label, command, environment, port)


def _quiet(environment: dict[str, str]) -> dict[str, str]:
    """Nobody is called, and two servers fit into memory: 1 GiB of key-value cache each."""
    fixed = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return environment | fixed


def without_address(arguments: Sequence[str]) -> list[str]:
    """vLLM's arguments less the host and port, given apart or with "="."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in {"--host", "--port"}:
            next(rest)
        elif not argument.startswith(("--host=", "--port=")):
            kept.append(argument)
    return kept


def without_plugin(environment: dict[str, str]) -> dict[str, str]:
    """The environment with our plugin taken off the list; an empty list stays, and loads none."""
    names = environment.get("VLLM_PLUGINS", "").split(",")
    kept = ",".join(name for name in names if name != "modiste")
    return environment | {"VLLM_PLUGINS": kept}


def json_of(command: Sequence[str], environment: dict[str, str]) -> Any:
    """What a command prints. Raises ServerError."""
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(result.stdout)
    except FileNotFoundError as error:
        raise ServerError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise ServerError(f"{' '.join(command)}: {error.stderr[-2000:]}") from error
    except ValueError as error:
        raise ServerError(f"{' '.join(command)} printed no JSON") from error


def tiny_home(home: Path) -> dict[str, str]:
    """An environment with a fresh home that holds one tiny random base, called tiny."""
    from tests.tiny import make_tiny_base

    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    folder = make_tiny_base(home / "tiny-source")
    environment = dict(os.environ) | {"MODISTE_HOME": str(home)}
    added = subprocess.run(
        [MODISTE, "base", "add", str(folder), "--name", "tiny"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if added.returncode != 0:
        raise ServerError(f"modiste base add: {added.stdout[-1000:]}{added.stderr[-1000:]}")
    return environment


def measure(
    launches: Sequence[Launch], plan: Plan, headers: Callable[[], Mapping[str, str]] = dict
) -> list[Pair]:
    """Pairs of blocks. headers: of all requests to both; asked for once the servers run."""
    pairs: list[Pair] = []
    prompts = distinct_prompts()
    with running(launches, RESULTS / "logs") as servers, LoadClient() as client:
        load = Load(client, servers, plan, headers())
        for concurrency, requests in plan.requests.items():  # warm-up, not counted
            warmup = list(islice(prompts, requests))
            for order in (0, 1):
                load.block(order, warmup, concurrency)
        for number in range(plan.pairs):
            for concurrency, requests in plan.requests.items():
                chosen = list(islice(prompts, requests))
                blocks = {
                    side: load.block(side, chosen, concurrency) for side in paired_order(number)
                }
                pairs.append(Pair(concurrency, blocks[0], blocks[1]))
            if (number + 1) % PAIRS_A_LINE == 0:
                print(f"pair {number + 1} of {plan.pairs}", file=sys.stderr, flush=True)
    return pairs


def distinct_prompts() -> Iterator[str]:
    """Short passages of real text, each with a number first, so that no prefix is cached."""
    least, most = PROMPT_WORDS
    passages = [
        passage for passage in read_passages("python") if least <= len(passage.split()) <= most
    ]
    for number, passage in enumerate(cycle(passages)):
        yield f"{number}. {passage}"


@dataclass(frozen=True)
class Load:
    """Loads one of two servers at a time."""

    client: LoadClient
    servers: Sequence[Server]
    plan: Plan
    headers: Mapping[str, str]

    def block(self, side: int, prompts: Sequence[str], concurrency: int) -> Block:
        """Send the prompts to one server. Raises LoadError."""
        server, other = self.servers[side], self.servers[1 - side]
        bodies = [chat_body(server.model, prompt, self.plan.max_tokens) for prompt in prompts]
        time.sleep(self.plan.pause_s)
        cpu_s, idle_s = server.api_cpu_s(), other.all_cpu_s()
        times = self.client.run(server.port, bodies, concurrency, self.headers)
        cpu_s, idle_s = server.api_cpu_s() - cpu_s, other.all_cpu_s() - idle_s
        if times.tokens != (expected := len(bodies) * self.plan.max_tokens):
            raise LoadError(f"{server.label}: {times.tokens} tokens, not {expected}")
        return Block(
            requests_per_s=len(bodies) / times.wall_s,
            ttft_ms=statistics.median(times.ttft_s) * 1000,
            api_cpu_ms=cpu_s * 1000 / len(bodies),
            idle_share=idle_s / times.wall_s,
        )


def chat_body(model: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """A streamed chat of a fixed length."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def claim_ratios(report: Report, pairs: Sequence[Pair]) -> None:
    """Modiste keeps bare vLLM's throughput and time to first token."""
    claim_throughput(report, pairs)
    ttfts = [pair.ttft_ratio for pair in pairs]
    over = f"against bare vLLM, median of {len(pairs)} pairs"
    report.add(at_most(f"time to first token {over}", statistics.median(ttfts), 1.05))


def claim_throughput(report: Report, pairs: Sequence[Pair]) -> None:
    """Modiste keeps bare vLLM's throughput."""
    ratios = [pair.throughput_ratio for pair in pairs]
    over = f"against bare vLLM, median of {len(pairs)} pairs"
    interval = bootstrap_interval(ratios)
    what = f"throughput {over}"
    report.add(at_least(what, statistics.median(ratios), 0.97, interval=interval))
    report.add(at_least(f"{what}, lower 95 %", interval[0], 0.93))


def claim_cpu(report: Report, pairs: Sequence[Pair]) -> None:
    """Modiste's front end takes little more CPU time than vLLM's."""
    for concurrency in sorted({pair.concurrency for pair in pairs}):
        extra = [pair.extra_cpu_ms for pair in pairs if pair.concurrency == concurrency]
        what = f"extra CPU time of the API process, a request, {concurrency} at once"
        report.add(at_most(what, statistics.median(extra), 0.3, "ms"))


def claim_idle(report: Report, pairs: Sequence[Pair], base: str) -> None:
    """The server not loaded takes next to nothing: else the ratios would say little."""
    shares = [block.idle_share for pair in pairs for block in (pair.bare, pair.ours)]
    what = f"the server not loaded meanwhile ({base}), median share of a core"
    report.add(at_most(what, statistics.median(shares), MOST_IDLE))


def note(report: Report, base: str, pairs: Sequence[Pair]) -> None:
    """Keep what was measured at each concurrency, beside the claims."""
    for concurrency in sorted({pair.concurrency for pair in pairs}):
        chosen = [pair for pair in pairs if pair.concurrency == concurrency]
        row: dict[str, Any] = {"base": base, "at once": concurrency, "pairs": len(chosen)}
        for name, values in {
            "throughput ratio": [pair.throughput_ratio for pair in chosen],
            "TTFT ratio": [pair.ttft_ratio for pair in chosen],
            "extra CPU ms": [pair.extra_cpu_ms for pair in chosen],
        }.items():
            low, high = bootstrap_interval(values)
            row[name] = f"{statistics.median(values):.3f} ({low:.3f} to {high:.3f})"
        for name, blocks in {
            "vLLM": [pair.bare for pair in chosen],
            "Modiste": [pair.ours for pair in chosen],
        }.items():
            row[f"{name} requests/s"] = _median(block.requests_per_s for block in blocks)
            row[f"{name} TTFT ms"] = _median(block.ttft_ms for block in blocks)
            row[f"{name} CPU ms"] = _median(block.api_cpu_ms for block in blocks)
        report.measurements.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 2)


if __name__ == "__main__":
    sys.exit(main())
