"""An hour of mixed traffic while adapters come and go: does anything stay behind?

One server with the tests' tiny base; waves of requests every few seconds (`bench/mixed.py`), now
and then a batch. Beside them a new version of one of four adapters is published and promoted, an
old one is retired, and files are collected. Just before each wave, when nothing runs, the server's
processes are looked at (`bench/resident.py`); each sample goes to samples.jsonl as it is taken. The
KV cache is small, so that all of it has been used long before the first figures count.
"""

import asyncio
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from adapters.bases import Base
from adapters.errors import AdapterError
from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.mixed import Traffic
from bench.resident import Samples, Window, memory_row
from bench.servers import Server, ServerError, free_port, running
from bench.tiny import launch
from tests.made import Recipe, add_tiny_base, publish

WAVE_EVERY_S, WAVE_S, REQUESTS = 10.0, 1.5, 20
CHURN_EVERY, COLLECT_EVERY, BATCH_EVERY = 3, 60, 15
"""Waves."""
ADAPTERS, KEPT = 4, 3
SETTINGS = {"max_loras": 4, "max_resident_versions": 8, "max_lora_rank": 8}
FLAGS = ["--", "--max-num-seqs", "32", "--num-gpu-blocks-override", "1024"]
LINES = 24
BATCH_S = 100.0
IDLE_S = 10.0
FLAT, SPARE = 1.05, 4
"""Growth of memory that is none; of descriptors and threads: pools grow as they are used."""
ALARMING = (" ERROR ", "Traceback (most recent", "was never retrieved", "was never awaited")
SHOWN = 10


@dataclass(frozen=True)
class Span:
    """How long it takes, and of what the medians are: a window after the warm-up, and the last."""

    seconds: float
    warm_s: float
    window_s: float


HOUR, SHORT = Span(3600, 600, 600), Span(300, 120, 60)


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Ask for as long, then compare the last samples with the first."""
    span = SHORT if short else HOUR
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    soak = Soak.prepare(registry, add_tiny_base(registry))
    start = launch("soak", registry.home.root, free_port(), SETTINGS, FLAGS)
    with running([start], folder / "logs") as (server,):
        samples = Samples(server, folder / "samples.jsonl")
        asyncio.run(soak.run(server, samples, span.seconds))
        left = _left(server)
        log = (folder / "logs" / "soak.log").read_text(errors="replace").splitlines()
    alarms = [line for line in log if any(sign in line for sign in ALARMING)]
    for line in [*soak.traffic.wrong[:SHOWN], *soak.wrong[:SHOWN], *alarms[:SHOWN]]:
        print(line, file=sys.stderr)
    _claim_traffic(report, soak, left, len(alarms))
    _claim_memory(report, samples, span)


@dataclass
class Soak:
    """The traffic, and what happens to the adapters meanwhile."""

    registry: Registry
    base: Base
    traffic: Traffic
    versions: dict[str, deque[int]]
    """Numbers that are in use, by name, the live one last."""
    churned: int = 0
    retired: int = 0
    batches: int = 0
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def prepare(cls, registry: Registry, base: Base) -> "Soak":
        names = [f"soak-{number}" for number in range(ADAPTERS)]
        recipes = [Recipe(name, seed=number) for number, name in enumerate(names)]
        labels = ["positive", "neutral", "negative"]
        recipes += [
            Recipe("mood", seed=100, task="classify", labels=labels),
            Recipe("enfr", seed=101, task="translate", languages=["en", "fr"]),
        ]
        for recipe in recipes:
            registry.promote(publish(registry, base, recipe).reference)
        traffic = Traffic([*names, "tiny"], "enfr", "mood")
        return cls(registry, base, traffic, {name: deque([1]) for name in names})

    async def run(self, server: Server, samples: Samples, seconds: float) -> None:
        """Waves until the time is over; samples before each, and at the end."""
        url, began = f"http://127.0.0.1:{server.port}", time.monotonic()
        batch: asyncio.Task[None] | None = None
        for number in range(round(seconds / WAVE_EVERY_S)):
            await asyncio.sleep(began + number * WAVE_EVERY_S - time.monotonic())
            samples.take(asked=self.traffic.asked, wrong=len(self.traffic.wrong))
            if number % BATCH_EVERY == BATCH_EVERY - 1:
                batch = asyncio.create_task(self._noting("a batch", self._batch(url)))
            async with asyncio.TaskGroup() as group:
                group.create_task(self.traffic.wave(url, REQUESTS, WAVE_S))
                if number % CHURN_EVERY == 0:
                    group.create_task(self._noting("a new version", self._churn(url)))
                if number % COLLECT_EVERY == COLLECT_EVERY - 1:
                    group.create_task(self._noting("collection", self._collect(url)))
        if batch is not None:
            await batch
        await asyncio.sleep(max(IDLE_S, began + seconds - time.monotonic()))
        samples.take(asked=self.traffic.asked, wrong=len(self.traffic.wrong))

    async def _noting(self, what: str, act: Coroutine[Any, Any, None]) -> None:
        """Do it; what fails is told at the end."""
        try:
            await act
        except (httpx.HTTPError, AdapterError, KeyError, ValueError) as error:
            self.wrong.append(f"{what}: {error!r}")

    async def _churn(self, url: str) -> None:
        """A new version goes live, the oldest goes; those between are asked for by number."""
        name = f"soak-{self.churned % ADAPTERS}"
        self.churned += 1
        numbers = self.versions[name]
        if len(numbers) >= KEPT:
            gone = numbers.popleft()
            self._offer()
        else:
            gone = None
        recipe = Recipe(name, seed=1000 + self.churned)
        version = await asyncio.to_thread(publish, self.registry, self.base, recipe)
        shutil.rmtree(self.registry.home.root / "made")
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            body = {"version": version.number}
            self._check(await client.post(f"/v1/adapters/{name}/promote", json=body))
            numbers.append(version.number)
            self._offer()
            if gone is not None:
                await asyncio.sleep(WAVE_S)  # those who asked for it have asked
                self._check(await client.delete(f"/v1/models/{name}@{gone}"))
                self.retired += 1

    def _offer(self) -> None:
        self.traffic.cold = [
            f"{name}@{number}" for name, numbers in self.versions.items() for number in numbers
        ]

    async def _collect(self, url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            body = {"keep": KEPT, "older_than_days": 0}
            self._check(await client.post("/v1/adapters/gc", json=body))

    async def _batch(self, url: str) -> None:
        """A batch, awaited; then its files are deleted."""
        lines = "".join(
            json.dumps(
                {
                    "custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions",
                    "body": self.traffic.chat(f"soak-{number % ADAPTERS}", 8),
                }
            ) + "\n"
            for number in range(LINES)
        )  # fmt: skip
        async with httpx.AsyncClient(base_url=f"{url}/v1", timeout=120) as client:
            form = {"purpose": "batch"}
            file = await client.post("/files", data=form, files={"file": ("a.jsonl", lines)})
            body = {
                "input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }  # fmt: skip
            told = (await client.post("/batches", json=body)).json()
            deadline = time.monotonic() + BATCH_S
            while told["status"] != "completed" and time.monotonic() < deadline:
                await asyncio.sleep(2.0)
                told = (await client.get(f"/batches/{told['id']}")).json()
            if told["status"] != "completed" or told["request_counts"]["completed"] != LINES:
                self.wrong.append(f"a batch is {told['status']}: {told['request_counts']}")
            self.batches += 1
            for id_ in filter(None, (told["input_file_id"], told["output_file_id"])):
                self._check(await client.delete(f"/files/{id_}"))

    def _check(self, answer: httpx.Response) -> None:
        if not answer.is_success:
            self.wrong.append(f"{answer.request.method} {answer.request.url.path}: {answer.text}")


IDLE = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "modiste_running_sequences", "modiste_queued_requests", "modiste_batch_lines_in_flight",
)  # fmt: skip


def _left(server: Server) -> dict[str, float]:
    """What the server says is still running; it should be nothing. Raises ServerError."""
    lines = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text.splitlines()
    found = {
        name: [float(line.rsplit(" ", 1)[1]) for line in lines
               if line.startswith((f"{name} ", f"{name}{{"))]
        for name in (*IDLE, "modiste_requests_in_flight")
    }  # fmt: skip
    if missing := [name for name, values in found.items() if not values]:
        raise ServerError(f"the server has no metrics {missing}")
    left = {name: sum(values) for name, values in found.items()}
    left["modiste_requests_in_flight"] -= 1  # who asks
    return left


def _claim_traffic(report: Report, soak: Soak, left: dict[str, Any], alarms: int) -> None:
    traffic = soak.traffic
    report.add(at_most("answers that should not have been", len(traffic.wrong), 0))
    report.add(at_most("acts on adapters and batches that failed", len(soak.wrong), 0))
    report.add(at_most("errors in the server's log", alarms, 0))
    report.add(at_most("left in queue and engine at the end", sum(left.values()), 0))
    report.measurements.append(
        {
            "part": "traffic", "requests": traffic.asked, "hung up": traffic.count("hung up"),
            "refused for load (429)": traffic.count("429"),
            "refused as asked for": traffic.count("400") + traffic.count("404"),
            "batches": soak.batches, "versions published": soak.churned, "retired": soak.retired,
        }
    )  # fmt: skip


def _claim_memory(report: Report, samples: Samples, span: Span) -> None:
    first = Window.of(samples.all, span.warm_s, span.warm_s + span.window_s)
    last = Window.of(samples.all, span.seconds - span.window_s, float("inf"))
    lasting = sorted(first.lasting() & last.lasting())
    growth = {
        process: last.median(process, "anonymous_mib") / first.median(process, "anonymous_mib")
        for process in lasting
    }
    (api,) = [process for process in lasting if process.startswith("api ")]
    engine = [process for process in lasting if process.startswith("engine ")]
    report.add(at_least("processes of the engine that were there all the time", len(engine), 2))
    report.add(at_most("memory of the API process, last over first", growth[api], FLAT))
    worst = max(growth[process] for process in engine)
    report.add(at_most("memory of the engine's process that grew most", worst, FLAT))
    total = last.median_total_mib() / first.median_total_mib()
    report.add(at_most("memory of all processes together", total, FLAT))
    for what in ("descriptors", "threads"):
        more = max(last.median(p, what) - first.median(p, what) for p in lasting)
        report.add(at_most(f"{what} more of the process that has most more", more, SPARE))
    more = last.median_processes() - first.median_processes()
    report.add(at_most("processes more", more, 0))
    windows = {"first": first, "last": last}
    report.measurements += [
        memory_row(process, windows, ("descriptors", "threads")) for process in lasting
    ]
    cores = (samples.all[-1].cpu_s - samples.all[0].cpu_s) / samples.all[-1].at_s
    report.measurements.append({"part": "load", "hours": round(span.seconds / 3600, 2),
                                "cores": round(cores, 2)})  # fmt: skip
