"""`python -m finetune run RECIPE`: prepare, check, train, evaluate, publish.

`again VERSION` does the same with the recipe of a version, `sweep RECIPE` with varied settings, of
which the best are published, `evaluate NAME@N --data FILE` measures a version again, and
`plan RECIPE` proposes a base and settings.

Exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted.
"""

import argparse
import errno
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.errors import AdapterError, InvalidInput, NotFound, StoreFailed
from adapters.registry import Registry
from finetune import sweep_command
from finetune.command import prepare_process, tell_error, without_caches
from finetune.config import Recipe, packaged_recipes, read_recipe
from finetune.findings import PreflightFailed, broken_findings
from finetune.full_gpu import told_when_full
from finetune.mistakes import RecipeError
from finetune.reading import BrokenData

COMMANDS = ("run", "prepare", "check", "train", "evaluate", "publish", "again", "sweep", "plan")
_MEASURE = "evaluate NAME@N --data FILE"
_BELONGS = {
    "base": "again VERSION", "server": _MEASURE, "write": "plan RECIPE", "hours": "plan RECIPE",
    **dict.fromkeys(sweep_command.OPTIONS, "sweep RECIPE"),
}  # fmt: skip
"""Options that one command alone takes."""
_HOURS = 8.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    console = Console(stderr=options.json)
    prepare_process()
    try:
        check_options(options)
        if options.command == "evaluate" and options.data:
            return measure_version(options, console)
        if options.command == "sweep":
            code, summary = sweep_command.run_sweep(options, overrides(options), console)
            if options.json:
                _print_json(summary)
            return code
        recipe = chosen_recipe(options)
        if options.command == "plan":
            return plan(recipe, options, console)
        return run_steps(recipe, options, console)
    except (AdapterError, OSError) as error:
        told = error if isinstance(error, AdapterError) else _full(error)
        _fail(told, options.json)
        return 2 if isinstance(told, InvalidInput | NotFound) else 1
    except KeyboardInterrupt:
        _say("interrupted; the same command with --resume goes on from the last finished step")
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="finetune",
        description="Customise a base model: prepare, check, train, evaluate, publish.",
        epilog="A single command also does the earlier steps that are missing.",
    )
    made.add_argument(
        "command", choices=COMMANDS,
        help="run does all steps in order, again does so with a version's recipe, sweep with "
        "varied settings, to publish the best; plan proposes a base and settings",
    )  # fmt: skip
    made.add_argument(
        "recipe", metavar="RECIPE|VERSION",
        help=f"a YAML file, or a packaged recipe: {', '.join(packaged_recipes())}; "
        "for again, and for evaluate with --data, a version such as greeter@3",
    )  # fmt: skip
    made.add_argument("--base", help="again only: train on this base model instead")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override a key, for example --set training.epochs=1",
    )  # fmt: skip
    made.add_argument(
        "--data", action="append", default=[], metavar="FILE",
        help="short for --set data.train=FILE; evaluate: measure a published version on these "
        "held-out examples; again: train on this instead; may be given several times",
    )  # fmt: skip
    made.add_argument(
        "--server", metavar="URL|start",
        help="with --data: ask a running server, or one that is started for it, by its routes "
        "instead of a model loaded here",
    )  # fmt: skip
    made.add_argument(
        "--executor", choices=("local", "ray"), default="local",
        help="ray: train on several workers with Ray Train, on this machine or a cluster",
    )  # fmt: skip
    made.add_argument(
        "--workers", type=int, metavar="N",
        help="with --executor ray: without it, one a GPU, or one a machine where there is none",
    )  # fmt: skip
    made.add_argument("--write", type=Path, metavar="FILE", help="plan: write the recipe there")
    made.add_argument(
        "--hours", type=float, help=f"plan: training may take so long (default {_HOURS:.0f})"
    )
    made.add_argument("--resume", action="store_true", help="keep what is done; train on")
    made.add_argument("--json", action="store_true", help="print a JSON summary on stdout")
    made.add_argument(
        "--folder", type=Path, metavar="DIR", help="the run's folder instead of one in HOME/runs"
    )
    made.add_argument("--home", type=Path, help="the home folder instead of MODISTE_HOME")
    sweep_command.add_options(made)
    return made


def check_options(options: argparse.Namespace) -> None:
    """Refuse what the command doesn't take.

    Raises:
        InvalidInput: the options don't go together.
    """
    measures = options.command == "evaluate" and bool(options.data)
    form = _MEASURE if measures else options.command
    for key, place in _BELONGS.items():
        if getattr(options, key) is not None and not place.startswith(form):
            raise _misplaced(f"--{key.replace('_', '-')}", form, f"it is for: finetune {place}")
    if options.server is not None and not measures:
        raise _misplaced("--server", form, f"it is for: finetune {_MEASURE}")
    of_runs = {
        "--executor": options.executor != "local", "--workers": options.workers is not None,
        "--folder": options.folder is not None,
    }  # fmt: skip
    if options.command != "sweep":  # it goes on by itself
        of_runs = {"--resume": options.resume, **of_runs}
    if measures or options.command in ("plan", "sweep"):
        for option in (name for name, given in of_runs.items() if given):
            raise _misplaced(option, form, "leave it out")


def _misplaced(option: str, form: str, hint: str) -> InvalidInput:
    if option == "--base":
        hint += "; elsewhere write --set base=NAME"
    return InvalidInput(f"{option} can't be used with: finetune {form}", hint=hint, param=option)


def chosen_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that the command line names."""
    if options.command == "again":
        from finetune.again import repeated_recipe

        registry = Registry.open(options.home)
        return repeated_recipe(registry, options.recipe, options.data, options.base, options.set)
    return read_recipe(options.recipe, overrides(options))


def overrides(options: argparse.Namespace) -> list[str]:
    """Keys of the recipe that the command line sets, `dotted.key=value`."""
    data = [f"data.train={json.dumps(options.data)}"] if options.data else []
    return [*options.set, *data]


@told_when_full()
def run_steps(recipe: Recipe, options: argparse.Namespace, console: Console) -> int:
    """Do what the command asks for, with a heading and a time for each step."""
    # torch takes seconds to import, and a mistake in a recipe should show at once
    from finetune.checkpoint import Interrupted
    from finetune.executor import Executor
    from finetune.run import Run, steps_to_run

    wanted = "run" if options.command == "again" else options.command
    executor = Executor(options.executor, options.workers)
    registry = Registry.open(options.home)
    run = Run(recipe, registry, console, resume=options.resume, executor=executor)
    if options.folder is not None:
        run.folder = options.folder
    with run.locked():
        if run.is_done("prepare") and (options.resume or wanted not in ("run", "prepare")):
            run.check_unchanged()
        chosen = steps_to_run(run, wanted)
        for step, work in chosen:
            console.rule(f"[bold]{step}[/] {recipe.name}", align="left")
            started = time.monotonic()
            try:
                work()
            except Interrupted as stopped:
                _say(
                    f"interrupted; checkpoint written after step {stopped.step} of "
                    f"{run.plan.steps}. The same command with --resume goes on from there."
                )
                return 130
            console.print(f"[dim]{step} took {time.monotonic() - started:.1f} s[/]")
        if not chosen:
            console.print(f"all done already: {run.folder}", highlight=False, soft_wrap=True)
        if options.json:
            _print_json(run.summary())
    return 0


@told_when_full()
def measure_version(options: argparse.Namespace, console: Console) -> int:
    """Evaluate a published version on other data."""
    from finetune.evaluate import show
    from finetune.evaluate_version import evaluate_version

    report, _ = evaluate_version(
        Registry.open(options.home), options.recipe, options.data, options.set, options.server,
        console.print,
    )  # fmt: skip
    show(report, console)
    if options.json:
        _print_json(report)
    return 0


def plan(recipe: Recipe, options: argparse.Namespace, console: Console) -> int:
    """Propose a base and settings; print them, and write them where asked."""
    from finetune.preflight import duration
    from finetune.proposal import propose, write_recipe

    fixed = {text.partition("=")[0] for text in options.set}
    hours = _HOURS if options.hours is None else options.hours
    proposal = propose(recipe, Registry.open(options.home), fixed=fixed, hours=hours, say=_say)
    if options.write is not None:
        write_recipe(proposal, options.write)
        _say(f"wrote {options.write}: modiste finetune run {options.write}")
    if options.json:
        _print_json(proposal.to_json())
        return 0
    estimate = proposal.estimate
    table = Table("setting", "value", "why", box=None)
    for choice in proposal.choices:
        table.add_row(choice.name, str(choice.value), Text(choice.reason))
    how = (
        f"median of {estimate.steps_measured} real steps, {estimate.tokens_per_second:.0f} tokens/s"
    )
    table.add_row("time", duration(estimate.seconds), how)
    there = f"measured at the peak; {proposal.memory_bytes / 2**30:.1f} GiB there"
    table.add_row("memory", f"{estimate.peak_bytes / 2**30:.2f} GiB", there)
    for name, verdict in proposal.bases.items():
        table.add_row(Text(f"base {name}"), "", Text(verdict))
    console.print(table)
    return 0


def _full(error: OSError) -> StoreFailed:
    """A disk without room is told as such; what else the system can't do is raised."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return StoreFailed(
        f"the disk is full: {error.filename or error.strerror}",
        hint="free some space; the same command with --resume goes on",
    )


def _fail(error: AdapterError, as_json: bool) -> None:
    more: dict[str, Any] = {}
    if isinstance(error, PreflightFailed):
        more["preflight"] = error.report
    if isinstance(error, BrokenData):
        more["findings"] = [asdict(found) for found in broken_findings(error)]
    if isinstance(error, RecipeError):
        more["mistakes"] = [
            {"key": m.key, "value": m.value, "problem": m.problem, "remedy": m.remedy}
            for m in error.mistakes
        ]
    tell_error(error, as_json=as_json, **more)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    without_caches()
    sys.exit(main())
