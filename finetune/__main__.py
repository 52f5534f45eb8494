"""`python -m finetune run RECIPE`: prepare, check, train, evaluate, publish.

`again VERSION` does the same with the recipe of a version, and `evaluate NAME@N --data FILE`
measures a version again.

Exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from adapters.errors import AdapterError, InvalidInput, NotFound
from adapters.registry import Registry
from finetune.command import prepare_process, tell_error
from finetune.config import Recipe, RecipeError, packaged_recipes, read_recipe

COMMANDS = ("run", "prepare", "check", "train", "evaluate", "publish", "again")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    console = Console(stderr=options.json)
    prepare_process()
    try:
        if options.command == "evaluate" and options.data:
            return measure_version(options, console)
        recipe = chosen_recipe(options)
        return run_steps(recipe, options, console)
    except AdapterError as error:
        _fail(error, options.json)
        return 2 if isinstance(error, InvalidInput | NotFound) else 1
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
        help="run does all steps in order; again does so with a version's recipe",
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
        help="evaluate: measure a published version on these held-out examples; again: train on "
        "this instead; may be given several times",
    )  # fmt: skip
    made.add_argument(
        "--server", metavar="URL",
        help="with --data: ask a running server, by its routes, instead of a model loaded here",
    )  # fmt: skip
    made.add_argument(
        "--executor", choices=("local", "ray"), default="local",
        help="ray: train on several workers with Ray Train, on this machine or a cluster",
    )  # fmt: skip
    made.add_argument(
        "--workers", type=int, metavar="N",
        help="with --executor ray: without it, one a GPU, or one a machine where there is none",
    )  # fmt: skip
    made.add_argument("--resume", action="store_true", help="keep what is done; train on")
    made.add_argument("--json", action="store_true", help="print a JSON summary on stdout")
    made.add_argument("--home", type=Path, help="the home folder instead of MODISTE_HOME")
    return made


def chosen_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that the command line names."""
    if options.command == "again":
        from finetune.again import repeated_recipe

        registry = Registry.open(options.home)
        return repeated_recipe(registry, options.recipe, options.data, options.base, options.set)
    given = {key: getattr(options, key) for key in ("data", "base", "server")}
    if misplaced := [f"--{key}" for key, value in given.items() if value]:
        raise InvalidInput(
            f"{' and '.join(misplaced)} can't be used here: --data is for again and evaluate, "
            "--base for again, --server for evaluate with --data",
            hint="write --set data.train=FILE and --set base=NAME",
            param=misplaced[0],
        )
    return read_recipe(options.recipe, options.set)


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


def measure_version(options: argparse.Namespace, console: Console) -> int:
    """Evaluate a published version on other data.

    Raises:
        InvalidInput: the options don't go together.
    """
    given = {
        "--resume": options.resume, "--base": options.base, "--workers": options.workers,
        "--executor": options.executor != "local",
    }  # fmt: skip
    if misplaced := next((name for name, value in given.items() if value), None):
        raise InvalidInput(
            f"{misplaced} can't be used with: finetune evaluate NAME@N --data FILE [--server URL]",
            hint="leave it out",
            param=misplaced,
        )
    from finetune.evaluate import show
    from finetune.evaluate_version import evaluate_version

    report, _ = evaluate_version(
        Registry.open(options.home), options.recipe, options.data, options.set, options.server
    )
    show(report, console)
    if options.json:
        _print_json(report)
    return 0


def _fail(error: AdapterError, as_json: bool) -> None:
    more: dict[str, Any] = {}
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
    sys.exit(main())
