"""Input that no client library sends, in bulk, against a server with the tests' tiny base.

`bench/hostile.py` makes the cases. After a warm-up, in which caches fill, the server must come
through as many as are asked for without a 5xx, without growing, and answer as it did before.
"""

import asyncio
import shutil
import sys
import time
from pathlib import Path

import httpx

from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.hostile import Found, send_all
from bench.resident import Samples, Window, memory_row
from bench.servers import free_port, running
from bench.tiny import launch
from tests.made import Recipe, add_tiny_base, publish

CASES, CASES_SHORT = 50_000, 5_000
WARM = 10_000
"""After so many the process had stopped growing; after a quarter of them it had not."""
FLAT = 1.05
SETTLE_S, LOOKS = 12.0, 3
"""What lingers has ended then; a figure is the median of so many looks."""
SHOWN = 20
FLAGS = ["--", "--num-gpu-blocks-override", "1024"]
"""A KV cache that the warm-up fills."""


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Send them, and look at the server before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    registry.promote(publish(registry, add_tiny_base(registry), Recipe("one")).reference)
    start = launch(
        "hostile", registry.home.root, free_port(), {"grammar_wait_s": 1, "worker_jobs": 0}, FLAGS
    )
    cases = CASES_SHORT if short else CASES
    with running([start], folder / "logs") as (server,):
        url = f"http://127.0.0.1:{server.port}"
        samples = Samples(server, folder / "samples.jsonl")
        asyncio.run(send_all(url, "one", WARM, seed=1))
        said, before = _said(url), _look(samples)
        began = time.perf_counter()
        found = asyncio.run(send_all(url, "one", cases, seed=2))
        seconds = time.perf_counter() - began
        after, says = _look(samples), _said(url)
        ready = httpx.get(f"{url}/health/ready").status_code
    for failure in found.failures[:SHOWN]:
        print(failure, file=sys.stderr)
    report.add(at_least("hostile requests that were sent", found.cases, cases))
    report.add(at_most("of them answered with a 5xx, or with what is no HTTP", _failed(found), 0))
    unharmed = float(ready == 200 and says == said)
    report.add(at_least("ready afterwards, and answering as before (1: yes)", unharmed, 1))
    _claim_memory(report, before, after)
    report.measurements.append(
        {
            "part": "hostile", "cases": found.cases, "cases/s": round(found.cases / seconds, 1),
            **{f"status {status or 'none'}": n for status, n in sorted(_statuses(found).items())},
        }
    )  # fmt: skip


def _failed(found: Found) -> int:
    return len(found.failures)


def _said(url: str) -> str:
    body = {
        "model": "one", "messages": [{"role": "user", "content": "save the file"}],
        "max_tokens": 16, "temperature": 0,
    }  # fmt: skip
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


def _look(samples: Samples) -> Window:
    time.sleep(SETTLE_S)
    looks = []
    for _ in range(LOOKS):
        looks.append(samples.take())
        time.sleep(1.0)
    return Window(looks)


def _statuses(found: Found) -> dict[int, int]:
    by_status: dict[int, int] = {}
    for what, number in found.statuses.items():
        status = int(what.rpartition(" ")[2])
        by_status[status] = by_status.get(status, 0) + number
    return by_status


def _claim_memory(report: Report, before: Window, after: Window) -> None:
    lasting = sorted(before.lasting() & after.lasting())
    windows = {"before": before, "after": after}
    report.measurements += [memory_row(process, windows, ("descriptors",)) for process in lasting]
    (api,) = [process for process in lasting if process.startswith("api ")]
    growth = after.median(api, "anonymous_mib") / before.median(api, "anonymous_mib")
    report.add(at_most("memory of the API process, after over before", growth, FLAT))
    total = after.median_total_mib() / before.median_total_mib()
    report.add(at_most("memory of all processes together", total, FLAT))
    more = after.median(api, "descriptors") - before.median(api, "descriptors")
    report.add(at_most("descriptors more of the API process", more, 4))
