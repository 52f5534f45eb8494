"""Items in lists against the same items as single chats.

A list of texts goes to /v1/translate and to /v1/classify as one request; the same texts go to
/v1/chat/completions one by one, over 32 connections that are all busy, with the messages that the
task's prompt makes of them. Both answer as many tokens: for a class a chat writes one, which is the
least. Blocks alternate, AB, BA, AB, …, and no text comes twice. On the tests' tiny base, where the
front end sets the pace.
"""

import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from adapters.prompt import ClassifyInput, TaskInput, TranslateInput, default_prompt
from adapters.registry import Registry
from bench.client import LoadError
from bench.harness import Report, at_least, bootstrap_interval, paired_order
from bench.servers import Server, free_port, running
from bench.shared import plain_prompts
from bench.tiny import launch
from bench.whole import WholeClient
from tests.made import add_tiny_base

ITEMS, CONNECTIONS = 192, 32
PAIRS, PAIRS_SHORT = 20, 6
TOKENS = 16
LABELS = ("positive", "neutral", "negative")
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Scenario:
    """A task, asked in both ways."""

    route: str
    tokens: int
    """Of a chat's answer; a translation has as many at most."""
    of_list: dict[str, Any]
    """What a list's request has beside its texts."""

    def chat(self, model: str, text: str) -> dict[str, Any]:
        """The body of a single item."""
        task_input: TaskInput
        if self.route == "/v1/translate":
            task_input = TranslateInput(text, "en", "fr")
            messages = default_prompt("translate").messages(task_input)
        else:
            task_input = ClassifyInput(text, LABELS)
            messages = default_prompt("classify").messages(task_input)
        return {
            "model": model, "messages": messages, "max_tokens": self.tokens, "temperature": 0,
        }  # fmt: skip

    def whole(self, model: str, texts: Sequence[str]) -> dict[str, Any]:
        """The body of a list."""
        return {"model": model, "text": list(texts), **self.of_list}


SCENARIOS = (
    Scenario(
        "/v1/translate", TOKENS,
        {"source_lang": "en", "target_lang": "fr", "max_tokens": TOKENS},
    ),
    Scenario("/v1/classify", 1, {"labels": list(LABELS)}),
)  # fmt: skip


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Ask in both ways and compare items a second."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    add_tiny_base(registry)
    start = launch("lists", registry.home.root, free_port(), {"worker_jobs": 0})
    texts = plain_prompts()
    with running([start], folder / "logs") as (server,), WholeClient() as client:
        for scenario in SCENARIOS:
            both = Both(client, server, scenario)
            both.pair(0, texts)  # warm
            pairs = PAIRS_SHORT if short else PAIRS
            found = [both.pair(number, texts) for number in range(pairs)]
            _claim(report, scenario, found)


@dataclass(frozen=True)
class Both:
    """A scenario in both ways, at one server."""

    client: WholeClient
    server: Server
    scenario: Scenario

    def pair(self, number: int, texts: Iterator[str]) -> tuple[float, float]:
        """Items a second, of a list and of single chats."""
        ways = (self._list, self._singles)
        rates = {way: ways[way](list(islice(texts, ITEMS))) for way in paired_order(number)}
        return rates[0], rates[1]

    def _list(self, texts: list[str]) -> float:
        body = self.scenario.whole(self.server.model, texts)
        block = self.client.run(self.server.port, self.scenario.route, [body], 1)
        if len(block.answers[0]["results"]) != len(texts):
            raise LoadError(f"{len(block.answers[0]['results'])} results of {len(texts)} texts")
        return len(texts) / block.wall_s

    def _singles(self, texts: list[str]) -> float:
        bodies = [self.scenario.chat(self.server.model, text) for text in texts]
        block = self.client.run(self.server.port, CHAT, bodies, CONNECTIONS)
        return len(texts) / block.wall_s


def _claim(report: Report, scenario: Scenario, found: Sequence[tuple[float, float]]) -> None:
    ratios = [of_list / singles for of_list, singles in found]
    interval = bootstrap_interval(ratios)
    what = f"{scenario.route}: items/s of a list over those of single chats"
    report.add(at_least(what, statistics.median(ratios), 1.3, interval=interval))
    report.measurements.append(
        {
            "route": scenario.route, "items": ITEMS, "pairs": len(found),
            "list items/s": round(statistics.median(rate for rate, _ in found), 1),
            "single chats items/s": round(statistics.median(rate for _, rate in found), 1),
            "ratio": f"{statistics.median(ratios):.3f} ({interval[0]:.3f} to {interval[1]:.3f})",
        }
    )  # fmt: skip
