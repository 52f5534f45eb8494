"""`modiste projects`: who has keys here, and what all of a project's keys may ask together."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

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
from service.console import AsJson, Home, out
from service.projects import Projects

projects_app = typer.Typer(no_args_is_help=True, help="Projects and their limits.")


@projects_app.command("list")
def list_projects(home: Home = None, as_json: AsJson = False) -> None:
    """List projects by name."""
    projects = _projects(home).all()
    if as_json:
        rows = [
            {
                "name": one.name, "created": one.created.isoformat(), "keys": one.keys,
                "limits": told(one.limits),
            }
            for one in projects
        ]  # fmt: skip
        print(json.dumps(rows, indent=1))
        return
    if not projects:
        out.print("no projects; one begins with `modiste keys create --project NAME`")
        return
    table = Table("name", "created", "keys", "limits")
    for one in projects:
        created = one.created.strftime("%Y-%m-%d %H:%M")
        table.add_row(one.name, created, str(one.keys), shown(one.limits))
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


def _projects(home: Any) -> Projects:
    return Projects(Registry.open(home).database)
