"""The command `modiste`.

Training, base models and load tests run as `python -m PACKAGE` in a child process:
this package imports none of them.
"""

import json
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from adapters.errors import AdapterError
from adapters.registry import Registry
from service import cli_canaries as _canaries  # noqa: F401  # adds its commands
from service.cli_adapters import adapters_app
from service.cli_audit import audit
from service.cli_backup import backup, restore
from service.cli_database import database_app
from service.cli_keys import keys_app
from service.cli_projects import projects_app
from service.cli_retention import retention
from service.cli_usage import usage
from service.console import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    PASS_ON,
    AsJson,
    Home,
    complain,
    out,
    run_child,
)
from service.ending import EndedByItself, end_at_once_until_ready
from service.sbom import sbom
from service.settings import SettingsError
from service.settings_sources import load_settings


class Command(TyperGroup):
    """Turns errors into a message, a remedy and an exit code."""

    def main(self, *args: object, **kwargs: object) -> object:
        try:
            return super().main(*args, **kwargs)  # type: ignore[arg-type]
        except AdapterError as error:
            complain(error.message, error.hint)
            sys.exit(FAILED if error.retryable else BAD_INPUT)
        except SettingsError as error:
            for problem in error.problems:
                complain(problem)
            sys.exit(BAD_INPUT)
        except EndedByItself as error:
            complain(
                f"the server ended by itself: {error}",
                "the log above has the reason; start it again",
            )
            sys.exit(FAILED)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


app = typer.Typer(
    cls=Command, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Customise a base language model and serve it.",
)  # fmt: skip
base_app = typer.Typer(no_args_is_help=True, help="Base models.")
app.add_typer(base_app, name="base")
app.add_typer(adapters_app, name="adapters")
app.add_typer(database_app, name="database")
app.add_typer(keys_app, name="keys")
app.add_typer(projects_app, name="projects")
app.command()(usage)
app.command()(audit)
app.command()(retention)
app.command()(backup)
app.command()(restore)
app.command()(sbom)


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
        capacity = launch.planned(settings, registry, model)
        print(json.dumps(launch.vllm_arguments(settings, model, capacity)))
    elif show is Shown.ENV:
        print(json.dumps(launch.vllm_environment(settings, registry.base(settings.base))))
    else:
        launch.serve(settings, registry)


@app.command(context_settings=PASS_ON, add_help_option=False)
def finetune(context: typer.Context) -> None:
    """Make an adapter: run, or one step of it (see `modiste finetune --help`)."""
    run_child("finetune", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def loadtest(context: typer.Context) -> None:
    """Load a server and report (see `modiste loadtest --help`)."""
    run_child("loadtests", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def worker(context: typer.Context) -> None:
    """Do fine-tuning jobs until it is stopped (see `modiste worker --help`)."""
    run_child("service.jobs.worker", context.args)


@app.command()
def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Tell what this machine has, what will be used, and what is wrong."""
    from service import doctor as examination

    raise typer.Exit(examination.main(home, as_json=as_json))


@base_app.command("add", context_settings=PASS_ON, add_help_option=False)
def base_add(context: typer.Context) -> None:
    """Add a folder, a hub id or a GGUF file (see `modiste base add --help`)."""
    run_child("finetune.bases", ["add", *context.args])


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


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1:2] == ["serve"]:
        end_at_once_until_ready()
    app(prog_name="modiste")


if __name__ == "__main__":
    main()
