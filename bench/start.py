"""From a command to an answer: our server against vLLM's own with the same flags, in turns.

Both serve the tests' tiny base, so that what is measured is the start and not the weights. Memory
is what their processes hold together, pages that they share counted once (proportional set size).
"""

import os
import shutil
import statistics
import time
from pathlib import Path

import httpx

from adapters.registry import Registry
from bench.harness import Report, at_most, paired_order
from bench.overhead import bare_launch, json_of, without_address, without_plugin
from bench.servers import Launch, Server, free_port, running, session_processes
from bench.tiny import launch
from tests.made import add_tiny_base

PAIRS, PAIRS_SHORT = 5, 2
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Start each in turn and ask it for a token."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    add_tiny_base(registry)
    found: list[list[tuple[float, float]]] = [[], []]
    for pair in range(PAIRS_SHORT if short else PAIRS):
        for contender in paired_order(pair):
            found[contender].append(_started(_launches(registry)[contender], folder))
    ours, theirs = ([seconds for seconds, _ in some] for some in found)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    report.add(at_most("seconds to the first answer, over vLLM's own server's", ratio, 0.7))
    for label, some in (("Modiste", found[0]), ("vLLM", found[1])):
        report.measurements.append(
            {
                "part": "start", "server": label, "starts": len(some),
                "seconds": round(statistics.median(seconds for seconds, _ in some), 1),
                "MiB": round(statistics.median(size for _, size in some)),
            }
        )  # fmt: skip


def _launches(registry: Registry) -> tuple[Launch, Launch]:
    ours = launch("modiste", registry.home.root, free_port(), {"worker_jobs": 0})
    arguments = without_address(json_of([*ours.command, "--print", "args"], dict(ours.environment)))
    told = json_of([*ours.command, "--print", "env"], dict(ours.environment))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODISTE_")} | QUIET
    return ours, bare_launch("vllm", arguments, environment | without_plugin(told))


def _started(launch: Launch, folder: Path) -> tuple[float, float]:
    """Seconds to the first answer, and MiB then."""
    began = time.perf_counter()
    with running([launch], folder / "logs") as (server,):
        body = {
            "model": server.model, "max_tokens": 1,
            "messages": [{"role": "user", "content": "hi"}],
        }  # fmt: skip
        url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
        httpx.post(url, json=body, timeout=120).raise_for_status()
        return time.perf_counter() - began, _mib(server)


def _mib(server: Server) -> float:
    total = 0
    for process in session_processes(server.session):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024
