"""The command `modiste`.

Training, base models and load tests run as `python -m PACKAGE` in a child process:
this package imports none of them.
"""

import json
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from adapters.errors import AdapterError
from adapters.names import PRODUCTION
from adapters.registry import Registry, Version
from service.settings import SettingsError, load_settings

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
out = Console()
err = Console(stderr=True)


class Command(TyperGroup):
    """Turns errors into a message, a remedy and an exit code."""

    def main(self, *args: object, **kwargs: object) -> object:
        try:
            return super().main(*args, **kwargs)  # type: ignore[arg-type]
        except AdapterError as error:
            _complain(error.message, error.hint)
            sys.exit(FAILED if error.retryable else BAD_INPUT)
        except SettingsError as error:
            for problem in error.problems:
                _complain(problem)
            sys.exit(BAD_INPUT)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def _complain(message: str, hint: str = "") -> None:
    err.print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    if hint:
        err.print(f"  {_escape(hint)}", highlight=False, soft_wrap=True)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


app = typer.Typer(
    cls=Command, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Customise a base language model and serve it.",
)  # fmt: skip
base_app = typer.Typer(no_args_is_help=True, help="Base models.")
adapters_app = typer.Typer(no_args_is_help=True, help="Adapters, their versions and aliases.")
app.add_typer(base_app, name="base")
app.add_typer(adapters_app, name="adapters")

Home = Annotated[
    Path | None, typer.Option(help="The home folder.", envvar="MODISTE_HOME", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _child(module: str, arguments: list[str]) -> None:
    """Run `python -m MODULE` in our place, and end as it ends."""
    try:
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


class Shown(StrEnum):
    """What `modiste serve --print` prints."""

    ARGS = "args"
    ENV = "env"


@app.command()
def serve(
    home: Home = None,
    base: Annotated[str | None, typer.Option(help="Base model; default: the first added.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    show: Annotated[
        Shown | None,
        typer.Option("--print", help="Print as JSON what vLLM would be started with; don't start."),
    ] = None,
    vllm_args: Annotated[
        list[str] | None, typer.Argument(help="More arguments for vLLM, after `--`.")
    ] = None,
) -> None:
    """Serve a base model and its adapters."""
    from service import launch

    registry = Registry.open(home)
    overrides = {"base": base, "host": host, "port": port, "vllm_args": vllm_args or None}
    settings = load_settings(registry.home, overrides)
    if show is Shown.ARGS:
        model = registry.base(settings.base)
        rank = launch.lora_rank(settings, registry)
        print(json.dumps(launch.vllm_arguments(settings, model, rank)))
    elif show is Shown.ENV:
        print(json.dumps(launch.vllm_environment(settings)))
    else:
        launch.serve(settings, registry)


@app.command(context_settings=PASS_ON, add_help_option=False)
def finetune(context: typer.Context) -> None:
    """Make an adapter: run, or one step of it (see `modiste finetune --help`)."""
    _child("finetune", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def loadtest(context: typer.Context) -> None:
    """Load a server and report (see `modiste loadtest --help`)."""
    _child("loadtests", context.args)


@app.command()
def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Tell what this machine has, what will be used, and what is wrong."""
    from service import doctor as examination

    raise typer.Exit(examination.main(home, as_json=as_json))


@base_app.command("add", context_settings=PASS_ON, add_help_option=False)
def base_add(context: typer.Context) -> None:
    """Add a folder, a hub id or a GGUF file (see `modiste base add --help`)."""
    _child("finetune.bases", ["add", *context.args])


@base_app.command("list")
def base_list(home: Home = None, as_json: AsJson = False) -> None:
    """List base models, the default first."""
    bases = Registry.open(home).bases()
    if as_json:
        print(json.dumps([base.model_dump(mode="json") for base in bases], indent=1))
        return
    if not bases:
        out.print("no base models; add one with `modiste base add SOURCE`")
        return
    table = Table("name", "architecture", "parameters", "context", "adapters", "tasks", "source")
    for base in bases:
        table.add_row(
            base.name, base.architecture, f"{base.parameters / 1e6:.0f} M",
            str(base.context_length), "yes" if base.lora else Text(f"no: {base.lora_reason}"),
            ", ".join(base.tasks), Text(base.source),
        )  # fmt: skip
    out.print(table)


@adapters_app.command("list")
def adapters_list(home: Home = None, as_json: AsJson = False) -> None:
    """List adapters with their aliases."""
    records = Registry.open(home).adapters()
    if as_json:
        rows = [
            {"name": r.name, "task": r.task, "versions": r.versions, "aliases": r.aliases}
            for r in records
        ]
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "task", "versions", "aliases")
    for record in records:
        aliases = ", ".join(f"{alias} -> {n}" for alias, n in sorted(record.aliases.items()))
        table.add_row(record.name, record.task, str(record.versions), aliases)
    out.print(table if records else "no adapters; make one with `modiste finetune run RECIPE`")


@adapters_app.command("show")
def adapters_show(reference: str, home: Home = None, as_json: AsJson = False) -> None:
    """Show an adapter's versions, or one version: NAME, NAME@7, NAME@alias, NAME@sha256:…"""
    registry = Registry.open(home)
    versions = [registry.find(reference)] if "@" in reference else registry.versions(reference)
    if as_json:
        rows = [
            {**v.manifest.model_dump(mode="json"), "state": v.state, "reason": v.reason}
            for v in versions
        ]
        print(json.dumps(rows, indent=1))
        return
    aliases = registry.aliases(versions[0].name) if versions else {}
    for version in versions:
        _print_version(version, [a for a, number in aliases.items() if number == version.number])


def _print_version(version: Version, aliases: list[str]) -> None:
    manifest = version.manifest
    table = Table(show_header=False, title=version.reference, title_justify="left")
    state = version.state if not version.reason else f"{version.state}: {version.reason}"
    table.add_row("digest", version.digest)
    table.add_row("state", Text(state))  # brackets in a reason are no markup
    table.add_row("aliases", ", ".join(aliases) or "none")
    table.add_row("task", f"{manifest.task} {' -> '.join(manifest.languages)}".strip())
    if manifest.labels:
        table.add_row("labels", Text(", ".join(manifest.labels)))
    table.add_row("base", f"{manifest.base.name} {manifest.base.fingerprint[:19]}…")
    table.add_row("made", f"{manifest.created:%Y-%m-%d %H:%M} UTC, {manifest.size / 1e6:.1f} MB")
    for name, m in manifest.metrics.items():
        table.add_row(
            Text(name),
            f"{m.value:.3g} ({m.low:.3g} to {m.high:.3g}); "
            f"base {m.base_value:.3g} ({m.base_low:.3g} to {m.base_high:.3g})",
        )
    out.print(table)


@adapters_app.command("promote")
def adapters_promote(
    reference: str,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = PRODUCTION,
    why: Annotated[str, typer.Option(help="The reason, kept in the history.")] = "",
    home: Home = None,
) -> None:
    """Point an alias at a version; running servers load, prove and serve it."""
    version = Registry.open(home).promote(reference, alias, why=why)
    out.print(f"{version.name}@{alias} -> {version.reference} {version.digest}", soft_wrap=True)


@adapters_app.command("verify")
def adapters_verify(reference: str, home: Home = None) -> None:
    """Check every file of a version against its digest."""
    registry = Registry.open(home)
    version = registry.find(reference)
    registry.store.verify(version.manifest)
    out.print(f"{version.reference} {version.digest} is whole", soft_wrap=True)


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    app(prog_name="modiste")


if __name__ == "__main__":
    main()
