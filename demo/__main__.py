"""The demo, from data to answers: `make demo`.

1  data        packages by name, read, not installed
2  customise   a translator of software messages and a sentiment classifier
3  figures     base against adapter on held-out examples
4  serve       one server; both adapters are promoted while it runs
5  answers     translate, classify, answer, generate and chat, base and adapter
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adapters.manifest import Metric
from adapters.registry import Registry, Version
from demo import data
from demo.answers import show_answers
from demo.server import DemoServer

FOLDER = Path("build/demo")
RECIPES = Path(__file__).parent / "recipes"
BOUNDS = {("messages-en-fr", "chrf"): 18.0, ("sentiment", "macro_f1"): 0.20}
"""Least gain over the base on held-out examples."""

console = Console()


@dataclass
class Step:
    """Names a step, and keeps its time for the summary."""

    seconds: dict[str, float]

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        console.rule(f"[bold]{name}", align="left")
        started = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - started, 1)
        return result


def finetune(recipe: str, name: str) -> Version:
    """Run a recipe, going on where an earlier demo stopped."""
    command = [sys.executable, "-m", "finetune", "run", str(RECIPES / recipe), "--resume"]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return Registry.open().versions(name)[-1]


def show_figures(versions: list[Version]) -> dict[str, dict[str, Any]]:
    """Print base against adapter; returns the figures by adapter and metric."""
    table = Table("adapter", "metric", "base model", "adapter", "gain", "held-out examples")
    figures: dict[str, dict[str, Any]] = {}
    for version in versions:
        manifest = version.manifest
        examples = sum(d.examples for d in manifest.datasets if d.split == "test")
        for name, metric in manifest.metrics.items():
            gain = metric.value - metric.base_value
            table.add_row(
                version.reference, name, _interval(metric, base=True), _interval(metric),
                f"{gain:+.3g}", str(examples),
            )  # fmt: skip
            figures.setdefault(version.name, {})[name] = metric.model_dump()
    console.print(table)
    console.print("In brackets: 95 % bootstrap intervals over the held-out examples.")
    return figures


def _interval(metric: Metric, *, base: bool = False) -> str:
    value, low, high = (
        (metric.base_value, metric.base_low, metric.base_high)
        if base
        else (metric.value, metric.low, metric.high)
    )
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def missed(figures: dict[str, dict[str, Any]]) -> list[str]:
    """The promised gains that the figures don't show."""
    found = []
    for (adapter, metric), bound in BOUNDS.items():
        gain = figures[adapter][metric]["value"] - figures[adapter][metric]["base_value"]
        if gain < bound:
            found.append(f"{adapter}: {metric} rose by {gain:.3g}, not by {bound:g}")
    return found


def main() -> int:
    seconds: dict[str, float] = {}
    step = Step(seconds)
    started = time.monotonic()
    counts = step("data", lambda: data.prepare(FOLDER))
    for name, count in counts.items():
        console.print(f"{name}: {count} examples")
    translator = step("customise: messages, English to French", lambda: finetune(
        "messages.yaml", "messages-en-fr"))  # fmt: skip
    classifier = step("customise: sentiment", lambda: finetune("sentiment.yaml", "sentiment"))
    figures = step("base against adapter", lambda: show_figures([translator, classifier]))
    with DemoServer(console, FOLDER / "server.log") as server:
        step("start the server", server.start)
        step("promote both while it runs", lambda: server.promote([translator, classifier]))
        step("answers", lambda: show_answers(console, server.url, [translator, classifier]))
        seconds["whole job"] = round(time.monotonic() - started, 1)
        result = {"figures": figures, "seconds": seconds, "examples": counts}
        (FOLDER / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"The job took {seconds['whole job'] / 60:.1f} minutes.")
        if problems := missed(figures):
            console.print("\n".join(f"[bold red]missed:[/] {line}" for line in problems))
            return 1
        if sys.stdin.isatty() and sys.stdout.isatty():
            server.stay()
    return 0


if __name__ == "__main__":
    sys.exit(main())
