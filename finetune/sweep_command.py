"""The command `finetune sweep`: its options, its progress, and what it prints in the end."""

import argparse
import time
from typing import Any

from rich.console import Console

from adapters.errors import InvalidInput
from adapters.registry import Registry
from finetune.sweep_config import read_sweep

_OPTIONS = ("over", "trials", "minutes", "no_prune")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are for a sweep alone."""
    group = parser.add_argument_group("sweep only")
    group.add_argument(
        "--over", action="append", default=[], metavar="KEY=VALUES",
        help="vary a key: a range (training.learning_rate=1e-4..1e-3:log) or choices "
        "(lora.r=8,16,32); several times for several keys",
    )  # fmt: skip
    group.add_argument("--trials", type=int, metavar="N", help="how many settings are tried")
    group.add_argument(
        "--minutes", type=float, help="no trial begins once trials took so long in all"
    )
    group.add_argument(
        "--no-prune", action="store_true", help="let trials that are behind the others finish"
    )


def refuse_elsewhere(options: argparse.Namespace) -> None:
    """Tell that an option is for a sweep alone.

    Raises:
        InvalidInput: another command was given it.
    """
    given = [f"--{name.replace('_', '-')}" for name in _OPTIONS if getattr(options, name)]
    if options.command != "sweep" and given:
        raise InvalidInput(
            f"{' and '.join(given)} can't be used with finetune {options.command}",
            hint="it is for: finetune sweep RECIPE",
            param=given[0],
        )


def run_sweep(options: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    """Search, show the trials, evaluate and publish the best.

    Returns:
        The exit code, and a summary for programs.

    Raises:
        RecipeError: the recipe, or what is varied, has mistakes.
        AdapterError: no trial finished, or the first one failed.
    """
    if misplaced := [f"--{key}" for key in ("data", "base", "server") if getattr(options, key)]:
        raise InvalidInput(
            f"{' and '.join(misplaced)} can't be used with: finetune sweep RECIPE",
            hint="write --set data.train=FILE and --set base=NAME",
            param=misplaced[0],
        )
    more = {
        "trials": options.trials, "minutes": options.minutes,
        "prune": False if options.no_prune else None,
    }  # fmt: skip
    sought = read_sweep(options.recipe, options.set, options.over, more)
    # torch takes seconds to import, and a mistake should show at once
    from finetune.sweep import SweepRun
    from finetune.train import Interrupted

    started = time.monotonic()
    sweep = SweepRun(sought, Registry.open(options.home), console)
    with sweep.locked():
        try:
            sweep.search()
        except (Interrupted, KeyboardInterrupt) as stopped:
            left = ""
            if isinstance(stopped, Interrupted):
                left = f"; the running trial left a checkpoint after step {stopped.step}"
            sweep.show()
            console.print(
                f"interrupted{left}. The same command goes on from there.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            return 130, sweep.summary()
        sweep.show()
        published = sweep.publish()
        console.print(
            f"[dim]the sweep took {(time.monotonic() - started) / 60:.1f} min: {sweep.folder}[/]",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 0, sweep.summary() | {"run": published} | _version(published)


def _version(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in ("version",) if key in summary}
