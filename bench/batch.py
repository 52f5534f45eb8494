"""A batch of short requests beside chats that come at a steady rate.

Turns of chats alone, the batch alone, and both: alone, both, batch, both, alone, so that drift of
the machine cancels. All on the tests' tiny base, where the front end is the limit.
"""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import openai

from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.paced import Paced, paced_chats
from bench.servers import ServerError, free_port, running
from bench.tiny import launch
from tests.made import Recipe, add_tiny_base, publish

LINES, LINES_SHORT = 5000, 1000
CHATS_S, CHATS_S_SHORT = 60.0, 20.0
EACH_S = 0.25
TOKENS = 8
LIMIT_S = 900.0


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Run the turns and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    base = add_tiny_base(registry)
    for name in ("chat", "batch"):
        publish(registry, base, Recipe(name, seed=len(name)))
        registry.promote(f"{name}@1")
    lines, chats_s = (LINES_SHORT, CHATS_S_SHORT) if short else (LINES, CHATS_S)
    start = launch("batch", registry.home.root, free_port(), {"worker_jobs": 0})
    with running([start], folder / "logs") as (server,):
        url = f"http://127.0.0.1:{server.port}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120)
        _batch(client, lines // 10)  # warm
        alone, beside = Paced(), Paced()
        rates: dict[str, list[float]] = {"alone": [], "beside": []}
        for turn in ("chats", "both", "batch", "both", "chats"):
            if turn == "chats":
                _chats(url, chats_s, alone)
            elif turn == "batch":
                rates["alone"].append(_batch(client, lines))
            else:
                with paced_chats(url, _body(), EACH_S) as found:
                    rates["beside"].append(_batch(client, lines))
                _add(beside, found)
    _claim(report, alone, beside, rates, lines)


def _body() -> dict[str, Any]:
    return {"model": "chat", "max_tokens": TOKENS, "temperature": 0}


def _chats(url: str, seconds: float, to: Paced) -> None:
    with paced_chats(url, _body(), EACH_S) as found:
        time.sleep(seconds)
    _add(to, found)


def _add(to: Paced, found: Paced) -> None:
    to.ttft_s += found.ttft_s
    to.failed += found.failed


def _batch(client: openai.OpenAI, lines: int) -> float:
    """Lines a second of a batch, from its first line to its last. Raises ServerError."""
    stamp = time.time_ns()
    content = "".join(
        json.dumps(
            {
                "custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions",
                "body": {
                    "model": "batch", "max_tokens": TOKENS, "temperature": 0,
                    "messages": [{"role": "user", "content": f"{number} {stamp} open the file"}],
                },
            }
        ) + "\n"
        for number in range(lines)
    )  # fmt: skip
    file = client.files.create(file=("lines.jsonl", content.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    began = 0.0
    deadline = time.monotonic() + LIMIT_S
    while batch.status in ("validating", "in_progress"):
        if time.monotonic() > deadline:
            raise ServerError(f"batch {batch.id} took over {LIMIT_S:g} s: {batch.request_counts}")
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
        if not began and batch.status != "validating":
            began = time.perf_counter()
    took = time.perf_counter() - began
    while batch.status == "finalizing":
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    counts = batch.request_counts
    if batch.status != "completed" or counts is None or counts.completed != lines:
        raise ServerError(f"batch {batch.id} is {batch.status}: {counts}, {batch.errors}")
    return lines / took


def _claim(
    report: Report, alone: Paced, beside: Paced, rates: dict[str, list[float]], lines: int
) -> None:
    median = statistics.median(beside.ttft_s) / statistics.median(alone.ttft_s)
    p95 = _p95(beside.ttft_s) / _p95(alone.ttft_s)
    rate = statistics.median(rates["beside"]) / statistics.median(rates["alone"])
    report.add(at_most("median time to first token beside a batch, over that alone", median, 2.0))
    report.add(at_most("p95 time to first token beside a batch, over that alone", p95, 3.0))
    report.add(at_least("lines/s of a batch beside chats, over those alone", rate, 0.6))
    report.add(at_most("chats that failed", len(alone.failed) + len(beside.failed), 0))
    for what, some in (("alone", alone), ("beside the batch", beside)):
        report.measurements.append(
            {
                "part": "chats", "when": what, "chats": len(some.ttft_s),
                "median ms": round(statistics.median(some.ttft_s) * 1000, 1),
                "p95 ms": round(_p95(some.ttft_s) * 1000, 1),
            }
        )  # fmt: skip
    for what, some_rates in rates.items():
        report.measurements.append(
            {
                "part": "batch", "when": what, "lines": lines,
                "lines/s": round(statistics.median(some_rates), 1),
            }
        )  # fmt: skip


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
