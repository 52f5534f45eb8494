"""Many adapters at once: 64 that are live, asked for in Zipf's proportions, against one.

Three servers of a real base are up: Modiste as it plans itself, vLLM's own resolver with as many
slots and our other flags, and vLLM's own resolver with vLLM's default flags. Blocks of the same
requests alternate: the slowest server gets fewer.
"""

import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from adapters.bases import Base
from adapters.registry import Registry
from bench.client import LoadClient, LoadError
from bench.harness import Report, at_least, bootstrap_interval
from bench.overhead import bare_launch, distinct_prompts, json_of, without_address, without_plugin
from bench.servers import MODISTE, Launch, Server, free_port, running
from tests.made import Recipe, random_adapter, randomise_b, write_folder

ADAPTERS = 64
ZIPF = 1.0
CONCURRENCY, TOKENS = 32, 16
REQUESTS, REQUESTS_SHORT = 96, 64
ROUNDS, ROUNDS_SHORT = 6, 3
EVERY_DEFAULT = 3
"""The server with vLLM's default flags is loaded in each third round only."""

PAUSE_S = 1.2
"""vLLM's worker spins for a second after its last step."""

_numbers = count()

QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@dataclass(frozen=True)
class Contender:
    """A server, and which of the adapters its blocks ask for."""

    label: str
    server: int
    many: bool


CONTENDERS = (
    Contender("one adapter", 0, many=False),
    Contender("64 adapters", 0, many=True),
    Contender("64 adapters, vLLM with as many slots", 1, many=True),
    Contender("64 adapters, vLLM with default flags", 2, many=True),
)


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Load the servers in turn and compare their throughput."""
    base = Registry.open().base()  # of the home that `make` uses
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    registry.add_base(base)
    print(f"making {ADAPTERS} adapters of {base.name} …", file=sys.stderr)
    names = [f"fleet-{number:02}" for number in range(ADAPTERS)]
    _publish(registry, base, names)
    found: dict[str, list[float]] = {contender.label: [] for contender in CONTENDERS}
    with (
        running(_launches(folder, registry, base), folder / "logs") as servers,
        LoadClient() as client,
    ):
        prompts = distinct_prompts()
        _warm_up(client, servers, names, prompts)
        for number in range(ROUNDS_SHORT if short else ROUNDS):
            block = _block(number, names, prompts, REQUESTS_SHORT if short else REQUESTS)
            for contender in _in_turn(number):
                found[contender.label].append(_load(client, servers, contender, block))
    _claim(report, found)


def _publish(registry: Registry, base: Base, names: list[str]) -> None:
    adapted = random_adapter(base, Recipe("", rank=8, scale=0.01))
    for number, name in enumerate(names):
        recipe = Recipe(name, rank=8, scale=0.01)
        torch.manual_seed(number)
        randomise_b(adapted, recipe)
        folder = registry.home.root / "made" / name
        registry.publish(folder, write_folder(adapted, base, recipe, folder))
        registry.promote(f"{name}@1")


def _launches(folder: Path, registry: Registry, base: Base) -> list[Launch]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODISTE_")} | QUIET
    environment["MODISTE_HOME"] = str(registry.home.root)
    port = free_port()
    serve = [MODISTE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    arguments = without_address(json_of([*serve, "--print", "args"], environment))
    same = environment | without_plugin(json_of([*serve, "--print", "env"], environment))
    resolver = {
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(_by_name(folder / "by-name", registry)),
    }
    served = ["--served-model-name", str(base.path)]  # the resolver compares it with the adapter's
    return [
        Launch("modiste", serve, environment, port, "/health/ready"),
        bare_launch("vllm-slots", [*arguments, *served], same | resolver),
        bare_launch("vllm-default", [str(base.path), "--enable-lora"], environment | resolver),
    ]


def _by_name(folder: Path, registry: Registry) -> Path:
    """The adapters' folders by their names, where vLLM's resolver looks."""
    folder.mkdir()
    for record in registry.adapters():
        (folder / record.name).symlink_to(registry.find(f"{record.name}@1").folder)
    return folder


def _warm_up(
    client: LoadClient, servers: Sequence[Server], names: list[str], prompts: Iterator[str]
) -> None:
    """Each adapter once on each server: what is loaded for the first time is not counted.

    With its default flags vLLM keeps one adapter, so there is little to warm.
    """
    for contender in CONTENDERS[1:]:
        some = names if contender.server < 2 else names[:8]
        block = list(zip(some, islice(prompts, len(some)), strict=True))
        _load(client, servers, contender, block)


def _block(
    number: int, names: list[str], prompts: Iterator[str], requests: int
) -> list[tuple[str, str]]:
    """Adapters in Zipf's proportions, each with a prompt of its own."""
    dice = random.Random(number)  # noqa: S311  # a benchmark's order
    weights = [1 / (rank + 1) ** ZIPF for rank in range(len(names))]
    chosen = dice.choices(names, weights, k=requests)
    return list(zip(chosen, islice(prompts, requests), strict=True))


def _in_turn(number: int) -> list[Contender]:
    """All, or all but the slowest; every second round backwards, so that drift cancels."""
    some = CONTENDERS if number % EVERY_DEFAULT == 0 else CONTENDERS[:3]
    return list(some if number % 2 == 0 else reversed(some))


def _load(
    client: LoadClient,
    servers: Sequence[Server],
    contender: Contender,
    block: Sequence[tuple[str, str]],
) -> float:
    """Requests a second. Raises LoadError when one failed.

    The prompts begin anew each time: what one block had asked of an adapter would be at hand for
    the next block on the same server.
    """
    server = servers[contender.server]
    bodies: list[dict[str, Any]] = [
        {
            "model": name if contender.many else "fleet-00",
            "messages": [{"role": "user", "content": f"{next(_numbers)}. {prompt}"}],
            "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name, prompt in block
    ]  # fmt: skip
    time.sleep(PAUSE_S)
    times = client.run(server.port, bodies, CONCURRENCY)
    if times.tokens != len(bodies) * TOKENS:
        raise LoadError(f"{server.label}: {times.tokens} tokens, not {len(bodies) * TOKENS}")
    rate = len(bodies) / times.wall_s
    print(f"{contender.label}: {rate:.2f} requests/s", file=sys.stderr, flush=True)
    return rate


def _claim(report: Report, found: dict[str, list[float]]) -> None:
    one, many, slots, default = (found[contender.label] for contender in CONTENDERS)
    against_one = [a / b for a, b in zip(many, one, strict=True)]
    against_slots = [a / b for a, b in zip(many, slots, strict=True)]
    against_default = [a / b for a, b in zip(many[::EVERY_DEFAULT], default, strict=True)]
    what = f"throughput with {ADAPTERS} live adapters (Zipf) over that with one"
    report.add(at_least(what, statistics.median(against_one), 0.9))
    what = f"throughput with {ADAPTERS} over vLLM's resolver with default flags"
    report.add(at_least(what, statistics.median(against_default), 2.0))
    what = f"throughput with {ADAPTERS} over vLLM's resolver with as many slots"
    report.add(at_least(what, statistics.median(against_slots), 1.0))
    ratios = {
        CONTENDERS[0].label: against_one,
        CONTENDERS[2].label: against_slots,
        CONTENDERS[3].label: against_default,
    }
    for contender in CONTENDERS:
        rates = found[contender.label]
        row: dict[str, Any] = {
            "part": "many", "contender": contender.label, "blocks": len(rates),
            "requests/s": round(statistics.median(rates), 2),
        }  # fmt: skip
        if contender.label in ratios:
            low, high = bootstrap_interval(ratios[contender.label])
            middle = statistics.median(ratios[contender.label])
            row["64 adapters over it"] = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        report.measurements.append(row)
