"""`modiste keys`: who may ask this installation's servers."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from adapters.registry import Registry
from service.cli_limits import (
    Concurrent,
    RequestsPerMinute,
    TokensPerMinute,
    given_limits,
    say,
    shown,
    some_limits,
    told,
)
from service.console import AsJson, Home, out, parse_span
from service.keys import DEFAULT_PROJECT, Key, Keys
from service.limiting.limits import Limits
from service.scopes import DEFAULT, Scope, in_order

keys_app = typer.Typer(no_args_is_help=True, help="API keys and their projects.")

Project = Annotated[str, typer.Option(help="Project: its files, jobs and adapters are its own.")]


@keys_app.command("create")
def create(  # noqa: PLR0913, PLR0917  # one for each option
    project: Project = DEFAULT_PROJECT,
    name: Annotated[str, typer.Option(help="Where it is used, for the list.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="Works for so long: 90d, 12h, 30m; default: for ever.")
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do, several times for several; default: infer and train."),
    ] = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrent: Concurrent = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    key, secret = _keys(home).create(
        project,
        name,
        None if expires is None else parse_span(expires, "expires"),
        frozenset(scope) if scope else DEFAULT,
        Limits(**given_limits(requests_per_minute, tokens_per_minute, concurrent)),
    )
    if as_json:
        print(json.dumps({**_told(key), "key": secret}))
        return
    # alone on stdout, so that a script can take it
    print(secret)
    scopes = ", ".join(in_order(key.scopes))
    typer.echo(
        f"{key.id} of project {key.project}, for {scopes}; the key is not shown again", err=True
    )


@keys_app.command("list")
def list_keys(
    project: Annotated[str | None, typer.Option(help="Of this project alone.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List keys, the oldest first; never the keys themselves."""
    keys = _keys(home).all(project)
    if as_json:
        print(json.dumps([_told(key) for key in keys], indent=1))
        return
    if not keys:
        out.print("no keys; make one with `modiste keys create`")
        return
    table = Table("id", "project", "name", "scopes", "limits", "created", "expires", "state")
    for key in keys:
        table.add_row(
            key.id, key.project, Text(key.name), " ".join(in_order(key.scopes)),
            shown(key.limits), _moment(key.created),
            "never" if key.expires is None else _moment(key.expires), _state(key),
        )  # fmt: skip
    out.print(table)


@keys_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, as `modiste keys list` shows it.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Let a key open nothing any more; running servers notice within seconds."""
    revoked = _keys(home).revoke(key)
    if as_json:
        print(json.dumps(_told(revoked)))
    else:
        out.print(f"{revoked.id} is revoked")


@keys_app.command("limit")
def limit_key(
    key: Annotated[str, typer.Argument(help="Its id, as `modiste keys list` shows it.")],
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrent: Concurrent = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Limit what a key may ask; running servers notice within seconds."""
    changes = some_limits(requests_per_minute, tokens_per_minute, concurrent)
    limited = _keys(home).limit(key, changes)
    say(limited.id, limited.limits, as_json=as_json)


def _keys(home: Any) -> Keys:
    return Keys(Registry.open(home).database)


def _state(key: Key) -> str:
    if key.revoked is not None:
        return "revoked"
    return "works" if key.works(datetime.now(UTC)) else "expired"


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _told(key: Key) -> dict[str, Any]:
    return {
        "id": key.id, "project": key.project, "name": key.name, "state": _state(key),
        "scopes": in_order(key.scopes), "limits": told(key.limits),
        "created": key.created.isoformat(),
        "expires": None if key.expires is None else key.expires.isoformat(),
        "revoked": None if key.revoked is None else key.revoked.isoformat(),
    }  # fmt: skip
