"""`modiste usage`: who used what, over all projects."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from adapters.errors import InvalidInput
from adapters.registry import Registry
from service.console import AsJson, Home, out
from service.usage import GROUPS, Usage


def usage(
    days: Annotated[int, typer.Option(min=1, max=3660, help="Up to today, in UTC.")] = 30,
    by: Annotated[
        str, typer.Option(help=f"What it is told by: any of {','.join(GROUPS)}.")
    ] = "project,model",
    project: Annotated[str | None, typer.Option(help="Of this project alone.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Tell requests and tokens that were used; servers report every few seconds."""
    names = [name for name in by.split(",") if name]
    if unknown := [name for name in names if name not in GROUPS]:
        raise InvalidInput(
            f"by: {unknown[0][:60]!r} is not known", hint=f"known are {', '.join(GROUPS)}",
            param="by",
        )  # fmt: skip
    today = datetime.now(UTC).date()
    kept = Usage(Registry.open(home).database)
    found = kept.sums(today - timedelta(days=days - 1), today, names, project)
    rows = [
        {**{name: str(value) for name, value in one.group.items()}, **asdict(one.counts)}
        for one in found
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        out.print(f"nothing was used in the last {days} days")
        return
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(Text(f"{v:,}" if isinstance(v, int) else v) for v in row.values()))
    out.print(table)
