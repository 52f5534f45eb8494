"""A real base and adapters of 10 MB: promotions under a steady load, and cold versions.

Two users chat by the alias all the time, in streams of 32 tokens, while the alias is promoted from
version to version. Then, without other load, versions that are loaded and versions that were
unloaded are asked for one token, in alternation. Then a second server starts on the same home,
loads ahead what the first one uses, and is asked for that. At last vLLM's own server loads the same
files under the same load: how long does it make a stream pause?
"""

import shutil
import statistics
import sys
import time
from itertools import count
from pathlib import Path

import httpx

from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.overhead import bare_launch, json_of, without_address, without_plugin
from bench.servers import free_port, running
from bench.steady import Answers, chat_body, steady_load
from bench.tiny import launch
from tests.made import Recipe, publish

VERSIONS, VERSIONS_SHORT = 13, 7
PLACES = 4
SETTINGS = {"max_resident_versions": PLACES, "max_loras": 2}
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
AFTER_LOAD_S = 0.3
"""The pause that a load makes ends with the stream's next piece."""
CALM_S = 4.0
SCALE = 0.02
PRELOAD_LIMIT_S = 60.0


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
    start = launch("switch", registry.home.root, free_port(), SETTINGS)
    with running([start], folder / "logs") as (server,):
        url = f"http://127.0.0.1:{server.port}"
        pause_s = _promotions(report, url, versions)
        _cold(report, url, versions)
        _loaded_ahead(report, registry, folder)
    _bare_loads(report, registry, folder, versions, pause_s)
    report.measurements.append({"part": "switch", "base": base.name, "bytes a version": size})


def _promotions(report: Report, url: str, versions: int) -> float:
    """Returns the longest pause of a stream at a promotion, in seconds, the median."""
    took: list[float] = []
    spans: list[tuple[float, float]] = []
    with steady_load(url, "switch") as answers, httpx.Client(base_url=url, timeout=120) as client:
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
    pause_s, calm_s = _pauses(answers, spans)
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
            "longest pause of a stream ms, met": round(pause_s * 1000),
            "longest pause ms, before": round(calm_s * 1000),
        }
    )  # fmt: skip
    return pause_s


def _pauses(answers: Answers, spans: list[tuple[float, float]]) -> tuple[float, float]:
    """The longest pause of a stream, the median of the spans and of as long ones just before."""
    calm = [(first - (last - first) - 0.1, first - 0.1) for first, last in spans]
    found, before = answers.longest_pauses(spans), answers.longest_pauses(calm)
    return statistics.median(found), statistics.median(before)


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


def _bare_loads(
    report: Report, registry: Registry, folder: Path, versions: int, pause_s: float
) -> None:
    """vLLM's own server, with our flags, loads the versions in turn under the same steady load."""
    like = launch("bare", registry.home.root, free_port(), SETTINGS)
    environment = {**like.environment, **QUIET}
    arguments = without_address(json_of([*like.command, "--print", "args"], environment))
    environment |= without_plugin(json_of([*like.command, "--print", "env"], environment))
    environment |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    spans: list[tuple[float, float]] = []
    took: list[float] = []
    with (
        running([bare_launch("bare", arguments, environment)], folder / "logs") as (server,),
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as client,
    ):
        paths = [str(registry.find(f"switch@{n}").folder) for n in range(1, versions + 1)]
        _load_bare(client, "switch-1", paths[0])
        with steady_load(str(client.base_url), "switch-1") as answers:
            time.sleep(CALM_S)
            for number, path in enumerate(paths[1:], 2):
                began = time.perf_counter()
                _load_bare(client, f"switch-{number}", path)
                loaded = time.perf_counter()
                took.append(loaded - began)
                spans.append((began, loaded + AFTER_LOAD_S))
                time.sleep(CALM_S)
    bare_s, calm_s = _pauses(answers, spans)
    what = "the longest pause of a stream at a promotion, over that at a load by vLLM's own server"
    report.add(at_most(what, pause_s / bare_s, 1.0))
    report.measurements.append(
        {
            "part": "vLLM's own load", "load ms": round(statistics.median(took) * 1000, 1),
            "longest pause of a stream ms, met": round(bare_s * 1000),
            "longest pause ms, before": round(calm_s * 1000),
        }
    )  # fmt: skip


def _load_bare(client: httpx.Client, name: str, path: str) -> None:
    body = {"lora_name": name, "lora_path": path}
    client.post("/v1/load_lora_adapter", json=body).raise_for_status()


def _loaded(client: httpx.Client, references: set[str]) -> set[str]:
    found = set()
    for reference in references:
        name, _, number = reference.partition("@")
        shown = client.get(f"/v1/adapters/{name}/versions/{number}").json()
        if shown["here"]["loaded"]:
            found.add(reference)
    return found


def _first_token(client: httpx.Client, model: str, begin: str = "") -> str:
    answer = client.post("/v1/chat/completions", json=chat_body(model, 1, begin))
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
