"""`modiste retention`: what is older than the settings allow."""

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table

from adapters.registry import Registry
from service.console import AsJson, Home, out
from service.settings_sources import load_settings


def retention(
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove it now; servers do so every hour.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Tell what is older than the settings `keep_…_days` allow, and would go."""
    from service.files import Files
    from service.retention import Periods, Retention
    from service.uses import USES

    registry = Registry.open(home)
    periods = Periods.of(load_settings(registry.home, {}))
    files = Files(registry.database, registry.home, USES)
    rules = Retention(registry.database, files, registry.home.jobs, periods)
    found = rules.apply() if apply else rules.due()
    if as_json:
        print(json.dumps({"applied": apply, "due": [asdict(due) for due in found]}, indent=1))
        return
    for name, period in asdict(periods).items():
        span = "for ever" if period is None else f"{period / timedelta(days=1):g} days"
        out.print(f"{name.replace('_', ' ')} are kept {span}", highlight=False)
    if not found:
        out.print("nothing is older")
        return
    table = Table("what", "project", "removed" if apply else "would be removed")
    for due in found:
        table.add_row(due.kind.replace("_", " "), due.project or "", f"{due.count:,}")
    out.print(table)
