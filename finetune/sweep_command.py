"""The command `finetune sweep`: its options, its progress, and what it prints in the end."""

import argparse
import time
from typing import Any

from rich.console import Console

from adapters.registry import Registry
from finetune.sweep_config import read_sweep

OPTIONS = ("over", "trials", "minutes", "no_prune")
"""Those for a sweep alone, None where they are not given."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are for a sweep alone."""
    group = parser.add_argument_group("sweep only")
    group.add_argument(
        "--over", action="append", metavar="KEY=VALUES",
        help="vary a key: a range (training.learning_rate=1e-4..1e-3:log) or choices "
        "(lora.r=8,16,32); several times for several keys",
    )  # fmt: skip
    group.add_argument("--trials", type=int, metavar="N", help="how many settings are tried")
    group.add_argument(
        "--minutes", type=float, help="no trial begins once trials took so long in all"
    )
    group.add_argument(
        "--no-prune",
        action="store_true",
        default=None,
        help="let trials that are behind the others finish",
    )


def run_sweep(
    options: argparse.Namespace, overrides: list[str], console: Console
) -> tuple[int, dict[str, Any]]:
    """Search, show the trials, evaluate and publish the best.

    Args:
        overrides: keys of the recipe that the command line sets, `dotted.key=value`.

    Returns:
        The exit code, and a summary for programs.

    Raises:
        RecipeError: the recipe, or what is varied, has mistakes.
        AdapterError: no trial finished, or the first one failed.
    """
    more = {
        "trials": options.trials, "minutes": options.minutes,
        "prune": False if options.no_prune else None,
    }  # fmt: skip
    sought = read_sweep(options.recipe, overrides, options.over or [], more)
    # torch takes seconds to import, and a mistake should show at once
    from finetune.checkpoint import Interrupted
    from finetune.sweep import SweepRun

    started = time.monotonic()
    sweep = SweepRun(sought, Registry.open(options.home), console)
    with sweep.locked():
        try:
            sweep.search()
            sweep.show()
            published = sweep.publish()
        except (Interrupted, KeyboardInterrupt) as stopped:
            left = ""
            if isinstance(stopped, Interrupted):
                sweep.show()
                left = f"; the running trial left a checkpoint after step {stopped.step}"
            console.print(
                f"interrupted{left}. The same command goes on from there.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            return 130, sweep.summary()
        console.print(
            f"[dim]this took {(time.monotonic() - started) / 60:.1f} min: {sweep.folder}[/]",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 0, sweep.summary() | {"run": published, "version": published["version"]}
