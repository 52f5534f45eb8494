"""`modiste audit`: who did what, over all projects."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from adapters.database import AuditRow
from adapters.errors import InvalidInput
from adapters.registry import Registry
from service.console import AsJson, Home, out, parse_span


def audit(  # noqa: PLR0913, PLR0917  # one for each option
    since: Annotated[
        str | None, typer.Option(help="For so long back, 7d or 12h; or from a day or time on.")
    ] = None,
    act: Annotated[
        str | None, typer.Option(help="An act, such as key.revoked, or all of a kind: alias.")
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="What was done to this project, or by its callers.")
    ] = None,
    who: Annotated[str | None, typer.Option(help="A key's id, or a user of the system.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most entries.")] = 100,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Tell what was done to keys, versions, aliases, files and projects, the last first."""
    from service.audit import AuditLog, Sought, describe_entry

    sought = Sought(None if since is None else _moment(since), act, project, who)
    entries, more = AuditLog(Registry.open(home).database).page(sought, limit=limit)
    if as_json:
        print(json.dumps([describe_entry(entry) for entry in entries], indent=1))
        return
    if not entries:
        out.print("nothing of that kind is on record")
        return
    table = Table("when (UTC)", "who", "act", "what", "project", "details")
    for entry in entries:
        table.add_row(
            f"{entry.made:%Y-%m-%d %H:%M:%S}", Text(_who(entry)), entry.act, Text(entry.what),
            entry.project or "", Text(_details(entry)),
        )  # fmt: skip
    out.print(table)
    if more:
        out.print(f"the last {limit}; --limit tells more")


def _moment(text: str) -> datetime:
    """A day, a time, or so long ago."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        now = datetime.now(UTC)
        try:
            return now - parse_span(text, "since")
        except (InvalidInput, OverflowError):
            raise InvalidInput(
                f"since {text[:40]!r} is neither a span nor a time",
                hint="write 7d, 12h, 2026-05-01 or 2026-05-01T12:00", param="since",
            ) from None  # fmt: skip
    return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)


def _who(entry: AuditRow) -> str:
    return entry.who if entry.caller_project is None else f"{entry.who} ({entry.caller_project})"


def _details(entry: AuditRow) -> str:
    told = (f"{key}: {value}" for key, value in entry.details.items() if key != "ids")
    return ", ".join(told)
