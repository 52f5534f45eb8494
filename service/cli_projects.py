"""`modiste projects`: what projects have, what all of a project's keys may ask, and their end."""

import json
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from adapters.registry import Registry
from service.cli_limits import (
    Concurrent,
    RequestsPerMinute,
    TokensPerMinute,
    say,
    shown,
    some_limits,
    told,
)
from service.console import FAILED, AsJson, Home, complain, err, out
from service.holdings import HELD, Holdings, all_holdings
from service.limiting.limits import NO_LIMITS
from service.projects import Projects

projects_app = typer.Typer(no_args_is_help=True, help="Projects, what they have, and their limits.")


@projects_app.command("list")
def list_projects(home: Home = None, as_json: AsJson = False) -> None:
    """List projects by name, with how much they have and their limits."""
    database = Registry.open(home).database
    found, limits = all_holdings(database), Projects(database).limited()
    if as_json:
        rows = [
            {
                "name": held.name, "state": _state(held), "keys": held.keys, **held.has,
                "limits": told(limits.get(held.name, NO_LIMITS)),
            }
            for held in found.values()
        ]  # fmt: skip
        print(json.dumps(rows, indent=1))
        return
    if not found:
        out.print("no projects; one begins with `modiste keys create --project NAME`")
        return
    table = Table("project", Column("state", no_wrap=True), "keys", *HELD, "limits")
    for held in found.values():
        counts = (f"{held.has[what]:,}" for what in HELD)
        limited = shown(limits.get(held.name, NO_LIMITS))
        table.add_row(held.name, _state(held), str(held.keys), *counts, limited)
    out.print(table)


@projects_app.command("limit")
def limit_project(
    project: Annotated[str, typer.Argument(help="Its name.")],
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrent: Concurrent = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Limit what all keys of a project may ask together."""
    changes = some_limits(requests_per_minute, tokens_per_minute, concurrent)
    say(project, _projects(home).limit(project, changes), as_json=as_json)


@projects_app.command("delete")
def delete_project(
    name: Annotated[str, typer.Argument(help="The project.")],
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Delete a project's keys, jobs, batches, files, adapters and usage; goes on after a kill."""
    from service.deletion import Deletion
    from service.errors import InUse
    from service.files import Files
    from service.uses import USES

    registry = Registry.open(home)
    held = all_holdings(registry.database).get(name)
    if held is not None and not yes:
        has = ", ".join(f"{count:,} {what}" for what, count in held.has.items() if count)
        has = f"{has or 'nothing'}, {held.keys} keys"
        typer.confirm(f"Delete the project {name} with {has}, for ever?", abort=True, err=True)
    deletion = Deletion(registry, Files(registry.database, registry.home, USES))
    try:
        gone = deletion.delete(
            name, tell=lambda said: err.print(said, highlight=False, soft_wrap=True)
        )
    except InUse as error:
        complain(error.message, error.hint)
        raise typer.Exit(FAILED) from error
    if as_json:
        print(json.dumps({"project": name, "removed": gone}))
    else:
        out.print(f"project {name} is deleted", highlight=False)


def _projects(home: Any) -> Projects:
    return Projects(Registry.open(home).database)


def _state(held: Holdings) -> str:
    if held.deleting is None:
        return "open"
    return "deleted" if held.is_empty else "being deleted"
