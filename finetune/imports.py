"""`python -m finetune.imports SOURCE`: publish an adapter that was made elsewhere.

A source is a folder or a tar: what `modiste adapters export` wrote, or what peft and the
trainers built on it save. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any, get_args

from adapters.errors import InvalidInput
from adapters.languages import parse_tag
from adapters.names import check_name
from adapters.prompt import Task
from adapters.registry import Registry, Version
from adapters.store import MANIFEST
from adapters.transfer import import_own, opened
from finetune.command import Progress, run_command
from finetune.foreign import TEXTS, Wanted, import_foreign

_MOST_TEXTS = 12


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)

    def work(progress: Progress) -> tuple[str, dict[str, Any]]:
        registry = Registry.open(options.home)
        version = import_adapter(options, registry, progress)
        for misfit in registry.misfits(version):
            progress(f"warning: {misfit}")
        about = {"version": version.reference, "digest": version.digest}
        return f"{version.reference} {version.digest}", about

    return run_command("import", work, as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="modiste adapters import",
        description="Publish an adapter that was made elsewhere: an export, or what peft saved.",
        epilog="An export says itself what it is for; only --name and --project go with it.",
    )
    made.add_argument("source", type=Path, help="a folder, or a .tar, .tar.gz or .tgz")
    made.add_argument("--name", help="the adapter's name (default: from the source)")
    made.add_argument("--project", help="the adapter's project (default: default)")
    made.add_argument("--task", choices=get_args(Task), help="its task (default: generate)")
    made.add_argument("--base", help="the base it was trained on (default: the default base)")
    made.add_argument("--source-lang", help="of a translator: the language it reads")
    made.add_argument("--target-lang", help="of a translator: the language it writes")
    made.add_argument("--labels", help="of a classifier: its labels, with commas between")
    made.add_argument(
        "--prompts", type=Path, help=f"texts to probe it with, one a line, at most {_MOST_TEXTS}"
    )
    made.add_argument("--home", type=Path, help="the home folder (default: MODISTE_HOME)")
    made.add_argument("--json", action="store_true", help="print JSON on stdout")
    return made


def import_adapter(options: argparse.Namespace, registry: Registry, progress: Progress) -> Version:
    """Publish what the options name.

    Raises:
        AdapterError: of the kinds that `import_own` and `import_foreign` raise.
    """
    progress(f"reading {options.source}")
    with opened(registry, options.source.expanduser()) as folder:
        if (folder / MANIFEST).exists():
            _refuse_meaningless(options)
            progress("checking an export")
            return import_own(registry, folder, name=options.name, project=options.project)
        return import_foreign(registry, folder, wanted_of(options), progress)


def _refuse_meaningless(options: argparse.Namespace) -> None:
    for name in ("task", "base", "source_lang", "target_lang", "labels", "prompts"):
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InvalidInput(
                f"{option} means nothing for an export, which says itself what it is for",
                hint=f"leave out {option}",
                param=name,
            )


def wanted_of(options: argparse.Namespace) -> Wanted:
    """What the options say of an adapter without a manifest.

    Raises:
        InvalidInput: names the option that is missing, wrong, or not for this task.
    """
    task: Task = options.task or "generate"
    languages = [options.source_lang, options.target_lang]
    _check_for(task, "translate", "--source-lang and --target-lang", languages)
    _check_for(task, "classify", "--labels", [options.labels])
    labels = [label.strip() for label in (options.labels or "").split(",") if label.strip()]
    if task == "classify" and (len(labels) < 2 or len({*labels}) < len(labels)):
        raise InvalidInput(
            "--labels needs two labels or more, each once",
            hint="write them as --labels spam,ham",
            param="labels",
        )
    return Wanted(
        name=name_of(options.source) if options.name is None else check_name(options.name),
        project=check_name(options.project or "default", "project"),
        task=task, base=options.base, labels=labels,
        languages=[parse_tag(tag) for tag in languages if tag is not None],
        texts=TEXTS if options.prompts is None else read_texts(options.prompts),
    )  # fmt: skip


def _check_for(task: Task, needing: Task, options: str, values: list[str | None]) -> None:
    if task == needing and None in values:
        raise InvalidInput(
            f"an adapter for {task} needs {options}", hint=f"give {options}", param="task"
        )
    if task != needing and any(value is not None for value in values):
        raise InvalidInput(
            f"{options} are for --task {needing}", hint=f"give --task {needing}", param="task"
        )


def name_of(source: Path) -> str:
    """A valid name from a source's: `My_LoRA.tar.gz` -> `my_lora`.

    Raises:
        InvalidName: nothing valid is left.
    """
    stem = re.sub(r"\.(tar|tgz|tar\.gz)$", "", source.expanduser().resolve().name.lower())
    return check_name(re.sub(r"[^a-z0-9._-]+", "-", stem)[:64].strip("._-"))


def read_texts(path: Path) -> tuple[str, ...]:
    """The first texts of a file, one a line, empty lines aside.

    Raises:
        InvalidInput: unreadable, or no text in it.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} can't be read: {error}", param="prompts") from error
    texts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))[:_MOST_TEXTS]
    if not texts:
        raise InvalidInput(f"{path} has no text", hint="write one a line", param="prompts")
    return texts


if __name__ == "__main__":
    sys.exit(main())
