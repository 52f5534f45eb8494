"""What more labels cost a classification.

One text at a time is classified with few and with many labels, in turn, on the default base, where
the model sets the pace. Two labels are the fewest that there can be, and cost one pass. Labels with
distinct first tokens need no more passes, however many; labels that begin alike need one for each
place where they part, on a prompt that the cache has by then.
"""

import shutil
import statistics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from adapters.prompt import Renderer
from adapters.registry import Registry
from bench.harness import Report, at_most, bootstrap_interval, paired_order
from bench.overhead import distinct_prompts
from bench.servers import free_port, running
from bench.tiny import launch
from bench.whole import WholeClient
from service.tasks.labels import branches

FEW = ("sport", "music")
DISTINCT = (
    "sport", "music", "politics", "science", "weather", "travel", "health", "food", "art", "law",
)  # fmt: skip
ALIKE = tuple(f"product {name}" for name in DISTINCT[:5]) + tuple(
    f"service {name}" for name in DISTINCT[:5]
)
ROUNDS, ROUNDS_SHORT = 60, 20
WORDS = 60


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Classify, and compare the times."""
    shutil.rmtree(folder, ignore_errors=True)
    base = Registry.open().base()  # of the home that `make` uses
    registry = Registry.open(folder / "home")
    registry.add_base(base)
    renderer = Renderer(AutoTokenizer.from_pretrained(base.path))
    start = launch("labels", registry.home.root, free_port(), {"worker_jobs": 0})
    words = " ".join(islice(distinct_prompts(), 400)).split()
    took: dict[tuple[str, ...], list[float]] = {FEW: [], DISTINCT: [], ALIKE: []}
    with running([start], folder / "logs") as (server,), WholeClient() as client:
        for number in range(-2, ROUNDS_SHORT if short else ROUNDS):
            order = [FEW, DISTINCT] if paired_order(number) == (0, 1) else [DISTINCT, FEW]
            for labels in (*order, ALIKE):
                first = (number * 7) % (len(words) - WORDS)
                # its number first, and another for each, so that no text is in the cache
                text = f"{number} {len(labels[0])} {' '.join(words[first : first + WORDS])}"
                body: dict[str, Any] = {"model": server.model, "text": text}
                block = client.run(
                    server.port, "/v1/classify", [{**body, "labels": list(labels)}], 1
                )
                if number >= 0:
                    took[labels].append(block.took_s[0])
    _claim(report, took, renderer, base.name)


def _claim(
    report: Report, took: dict[tuple[str, ...], list[float]], renderer: Renderer, base: str
) -> None:
    ratios = [many / few for many, few in zip(took[DISTINCT], took[FEW], strict=True)]
    alike = [many / few for many, few in zip(took[ALIKE], took[FEW], strict=True)]
    what = "time of 10 labels with distinct first tokens over that of 2"
    report.add(at_most(what, statistics.median(ratios), 1.2, interval=bootstrap_interval(ratios)))
    report.add(
        at_most("passes for 10 labels with distinct first tokens", _passes(renderer, DISTINCT), 1)
    )
    for labels, over in ((FEW, None), (DISTINCT, ratios), (ALIKE, alike)):
        report.measurements.append(
            {
                "base": base, "labels": len(labels), "such as": labels[0],
                "passes": _passes(renderer, labels),
                "median ms": round(statistics.median(took[labels]) * 1000, 1),
                "over 2 labels": "" if over is None else round(statistics.median(over), 3),
            }
        )  # fmt: skip


def _passes(renderer: Renderer, labels: Sequence[str]) -> int:
    """Engine requests that a text takes."""
    return len(branches([tuple(renderer.completion_ids(label)) for label in labels]))
