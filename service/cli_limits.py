"""How commands take and show limits; `modiste projects`."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from adapters.errors import InvalidInput
from adapters.registry import Registry
from service.console import AsJson, Home, out
from service.limiting.limits import LIMITS, Limits
from service.projects import Projects
from service.settings import MOST

projects_app = typer.Typer(no_args_is_help=True, help="Projects and their limits.")

_VALUES = "a number, `none`, or `default`: as the settings say"
RequestsPerMinute = Annotated[
    str | None, typer.Option(help=f"Requests that begin in any minute: {_VALUES}.")
]
TokensPerMinute = Annotated[
    str | None, typer.Option(help=f"Tokens, read and written, in any minute: {_VALUES}.")
]
Concurrent = Annotated[
    str | None, typer.Option(help=f"Requests that are answered at once: {_VALUES}.")
]


def given_limits(*values: str | None) -> dict[str, int | None]:
    """Those of the options that were given, in the order of LIMITS; 0: no limit.

    Raises:
        InvalidInput: a value is none.
    """
    pairs = zip(LIMITS, values, strict=True)
    return {name: _number(name, value) for name, value in pairs if value is not None}


def some_limits(*values: str | None) -> dict[str, int | None]:
    """The same where at least one is needed.

    Raises:
        InvalidInput: none is given, or a value is none.
    """
    if changes := given_limits(*values):
        return changes
    options = ", ".join(f"--{name.replace('_', '-')}" for name in LIMITS)
    raise InvalidInput("no limit is given", hint=f"give one of {options}", param=LIMITS[0])


def shown(limits: Limits) -> str:
    """In a table's cell; empty: all as the settings say."""
    short = ("requests/min", "tokens/min", "at once")
    values = [getattr(limits, name) for name in LIMITS]
    pairs = zip(values, short, strict=True)
    return ", ".join(
        f"any {name}" if value == 0 else f"{value:,} {name}"
        for value, name in pairs
        if value is not None
    )


def told(limits: Limits) -> dict[str, int | str]:
    """In JSON."""
    values = {name: getattr(limits, name) for name in LIMITS}
    words = {None: "default", 0: "none"}
    return {name: words.get(value, value) for name, value in values.items()}


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


def say(whose: str, limits: Limits, *, as_json: bool) -> None:
    """What was set."""
    if as_json:
        print(json.dumps({"of": whose, "limits": told(limits)}))
    else:
        out.print(f"{whose}: {shown(limits) or 'limits as the settings say'}")


def _number(name: str, value: str) -> int | None:
    if value in ("none", "default"):
        return 0 if value == "none" else None
    if value.isascii() and value.isdecimal() and 0 < len(value) < 16 and 1 <= int(value) <= MOST:
        return int(value)
    raise InvalidInput(
        f"{name}: {value[:40]!r} is no limit",
        hint=f"give a number from 1 to {MOST}, none, or default", param=name,
    )  # fmt: skip


def _projects(home: Any) -> Projects:
    return Projects(Registry.open(home).database)
