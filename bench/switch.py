"""A real base and adapters of 10 MB: promotions under a steady load, and cold versions.

Two users chat by the alias all the time, in streams of 32 tokens, while the alias is promoted from
version to version. Then, without other load, versions that are loaded and versions that were
unloaded are asked for one token, in alternation. At last a second server starts on the same home,
loads ahead what the first one uses, and is asked for that.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event, Thread

import httpx

from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.servers import free_port, running
from bench.tiny import launch
from tests.made import Recipe, publish

VERSIONS, VERSIONS_SHORT = 13, 7
PLACES = 4
USERS, TOKENS = 2, 32
CALM_S = 4.0
SCALE = 0.02
PRELOAD_LIMIT_S = 60.0


@dataclass
class Answers:
    """Answers of the steady load: when asked, when done (seconds), and by which version."""

    done: list[tuple[float, float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """Between two pieces of a stream: when it ended, and how long it was, seconds."""

    def longest_pauses(self, spans: list[tuple[float, float]]) -> list[float]:
        """The longest pause of any stream that ended in each span."""
        return [
            max((s for at, s in self.pauses if first <= at <= last), default=0.0)
            for first, last in spans
        ]

    def during(self, spans: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Seconds of the answers that met a promotion, and of the others."""
        met: list[float] = []
        others: list[float] = []
        for began, ended, _ in self.done:
            meets = any(began < last and ended > first for first, last in spans)
            (met if meets else others).append(ended - began)
        return met, others


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Promote, then ask for cold versions."""
    shutil.rmtree(folder, ignore_errors=True)
    base = Registry.open().base()  # of the home that `make` uses
    registry = Registry.open(folder / "home")
    registry.add_base(base)
    versions = VERSIONS_SHORT if short else VERSIONS
    print(f"making {versions} adapters of {base.name} …", file=sys.stderr)
    size = 0
    for number in range(versions):
        recipe = Recipe("switch", seed=number, rank=8, scale=SCALE)
        size = publish(registry, base, recipe).manifest.size
    registry.promote("switch@1")
    settings = {"max_resident_versions": PLACES, "max_loras": 2}
    start = launch("switch", registry.home.root, free_port(), settings)
    with running([start], folder / "logs") as (server,):
        url = f"http://127.0.0.1:{server.port}"
        _promotions(report, url, versions)
        _cold(report, url, versions)
        _loaded_ahead(report, registry, folder)
    report.measurements.append({"part": "switch", "base": base.name, "bytes a version": size})


def _promotions(report: Report, url: str, versions: int) -> None:
    took: list[float] = []
    spans: list[tuple[float, float]] = []
    with steady_load(url) as answers, httpx.Client(base_url=url, timeout=120) as client:
        time.sleep(CALM_S)
        for number in range(2, versions + 1):
            began = time.perf_counter()
            client.post("/v1/adapters/switch/promote", json={"version": number}).raise_for_status()
            in_effect = time.perf_counter()
            model = _first_token(client, "switch")
            took.append(time.perf_counter() - began)
            if model != f"switch@{number}":
                answers.failed.append(f"{model} answered after switch@{number} was promoted")
            spans.append((began, in_effect))
            time.sleep(CALM_S)
    met, others = answers.during(spans)
    for failure in answers.failed[:5]:
        print(failure, file=sys.stderr)
    ratio = _p99(met) / _p99(others)
    # as long, and just before
    calm = [(first - (last - first) - 0.1, first - 0.1) for first, last in spans]
    pauses = [answers.longest_pauses(spans), answers.longest_pauses(calm)]
    what = f"from a promotion to its first answer, median of {len(took)}"
    report.add(at_most(what, statistics.median(took), 1.0, "s"))
    report.add(at_most("failed or wrong answers of the steady load", len(answers.failed), 0))
    report.add(at_least("answers that met a promotion", len(met), len(spans)))
    report.add(at_most("p99 latency of answers that met a promotion, over others'", ratio, 1.3))
    report.measurements.append(
        {
            "part": "promotion", "slowest s": round(max(took), 3),
            "answers": len(answers.done), "that met a promotion": len(met),
            "median s, met": round(statistics.median(met), 3),
            "median s, others": round(statistics.median(others), 3),
            "p99 s, met": round(_p99(met), 3), "p99 s, others": round(_p99(others), 3),
            "longest pause of a stream ms, met": round(statistics.median(pauses[0]) * 1000),
            "longest pause ms, before": round(statistics.median(pauses[1]) * 1000),
        }
    )  # fmt: skip


def _cold(report: Report, url: str, versions: int) -> None:
    """Versions in turn, more than there are places: each was unloaded since it was asked last."""
    first: list[float] = []
    cold: list[float] = []
    warm: list[float] = []
    with httpx.Client(base_url=url, timeout=120) as client:
        for times in (first, cold, cold):
            for number in range(1, versions):
                times.append(_timed(client, f"switch@{number}"))
                warm.append(_timed(client, f"switch@{number}"))
            if times is first:
                before = _loads(client)
        after = _loads(client)
    engine_s = (after[0] - before[0]) / (after[1] - before[1])
    extra = statistics.median(cold) - statistics.median(warm)
    report.add(at_least("cold answers that needed a load", after[1] - before[1], len(cold)))
    report.add(
        at_most("a cold version over a warm one, of the engine's own load", extra / engine_s, 1.3)
    )
    report.measurements.append(
        {
            "part": "cold", "warm ms": round(statistics.median(warm) * 1000, 1),
            "cold ms": round(statistics.median(cold) * 1000, 1),
            "engine's load ms": round(engine_s * 1000, 1),
        }
    )  # fmt: skip


def _loaded_ahead(report: Report, registry: Registry, folder: Path) -> None:
    """What the first server has leased, on a second one that nobody has asked yet."""
    settings = {"max_resident_versions": 2 * PLACES, "max_loras": 2 * PLACES}
    start = launch("second", registry.home.root, free_port(), settings)
    wanted = {version.reference for version in registry.wanted("nobody")}
    with (
        running([start], folder / "logs") as (server,),
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as client,
    ):
        deadline = time.monotonic() + PRELOAD_LIMIT_S
        while len(ahead := _loaded(client, wanted)) < min(len(wanted), 2 * PLACES):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        _first_token(client, "switch")  # the first answer of a process has costs of its own
        first: list[float] = []
        again: list[float] = []
        numbers = count()  # no prompt twice: the engine would have its beginning at hand
        for model in sorted(ahead - {"switch@1"}):
            first.append(_timed(client, model, f"{next(numbers)}. "))
            again += [_timed(client, model, f"{next(numbers)}. ") for _ in range(3)]
    report.add(at_least("versions loaded ahead by a second server", len(first), 3))
    ratio = statistics.median(first) / statistics.median(again)
    report.add(at_most("the first answer of a version loaded ahead, over later ones", ratio, 1.1))
    report.measurements.append(
        {
            "part": "loaded ahead", "first ms": round(statistics.median(first) * 1000, 1),
            "later ms": round(statistics.median(again) * 1000, 1),
        }
    )  # fmt: skip


def _loaded(client: httpx.Client, references: set[str]) -> set[str]:
    found = set()
    for reference in references:
        name, _, number = reference.partition("@")
        shown = client.get(f"/v1/adapters/{name}/versions/{number}").json()
        if shown["here"]["loaded"]:
            found.add(reference)
    return found


@contextmanager
def steady_load(url: str) -> Iterator[Answers]:
    """Users who chat by the alias until the body ends."""
    done, answers = Event(), Answers()

    def chat() -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not done.is_set():
                began = time.perf_counter()
                try:
                    models = _stream(client, answers.pauses)
                except (httpx.HTTPError, ValueError) as error:
                    answers.failed.append(repr(error))
                    continue
                answers.done.append((began, time.perf_counter(), ", ".join(sorted(models))))
                if len(models) != 1:
                    answers.failed.append(f"one stream by {models}")

    threads = [Thread(target=chat) for _ in range(USERS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _stream(client: httpx.Client, pauses: list[tuple[float, float]]) -> set[str]:
    body = {**_body("switch", TOKENS), "stream": True}
    models: set[str] = set()
    last = 0.0
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                now = time.perf_counter()
                if models:  # the wait for the first piece is no pause
                    pauses.append((now, now - last))
                last = now
                models.add(json.loads(line[6:])["model"])
    return models


def _body(model: str, tokens: int, begin: str = "") -> dict[str, object]:
    text = f"{begin}Tell me of the sea, the harbour and the ships."
    message = {"role": "user", "content": text}
    return {
        "model": model, "messages": [message], "max_tokens": tokens, "ignore_eos": True,
        "temperature": 0,
    }  # fmt: skip


def _first_token(client: httpx.Client, model: str, begin: str = "") -> str:
    answer = client.post("/v1/chat/completions", json=_body(model, 1, begin))
    answer.raise_for_status()
    return str(answer.json()["model"])


def _timed(client: httpx.Client, model: str, begin: str = "") -> float:
    began = time.perf_counter()
    _first_token(client, model, begin)
    return time.perf_counter() - began


def _loads(client: httpx.Client) -> tuple[float, float]:
    """Seconds and number of the engine's loads so far."""
    lines = client.get("/metrics").text.splitlines()
    name = "modiste_engine_load_seconds"
    return (
        next(float(line.split()[1]) for line in lines if line.startswith(f"{name}_sum")),
        next(float(line.split()[1]) for line in lines if line.startswith(f"{name}_count")),
    )


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, round(0.99 * len(values)))]
