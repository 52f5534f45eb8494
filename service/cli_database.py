"""`modiste database`: its tables, looked at and brought up to date."""

import json
from dataclasses import asdict

import typer

from adapters.database_url import find_database
from adapters.home import Home as HomeFolder
from adapters.schema import look
from adapters.schema import upgrade as upgrade_schema
from service.console import FAILED, OK, AsJson, Home, out

database_app = typer.Typer(no_args_is_help=True, help="The database.")


@database_app.command("upgrade")
def upgrade(home: Home = None, as_json: AsJson = False) -> None:
    """Make the tables or bring them up to date, before servers of this release start."""
    before = upgrade_schema(find_database(HomeFolder.find(home)))
    if as_json:
        print(json.dumps(asdict(before) | {"upgraded": not before.is_current}))
    elif before.is_current:
        out.print(f"{before.database} is up to date: {before.wanted}", highlight=False)
    else:
        was = before.found or "no tables"
        out.print(f"{before.database}: {was} -> {before.wanted}", highlight=False)


@database_app.command("status")
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Tell which tables there are and which this release needs; 1 where they differ."""
    schema = look(find_database(HomeFolder.find(home)))
    if as_json:
        print(json.dumps(asdict(schema) | {"current": schema.is_current}))
    else:
        found = schema.found or "no tables"
        out.print(f"{schema.database}: {found}, needed: {schema.wanted}", highlight=False)
    raise typer.Exit(OK if schema.is_current else FAILED)
