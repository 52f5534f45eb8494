"""`modiste backup` and `modiste restore`."""

from pathlib import Path
from typing import Annotated

import typer

from adapters.home import Home as HomeFolder
from adapters.registry import Registry
from service.console import FAILED, AsJson, Home, complain, err, out


def backup(
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    bases: Annotated[bool, typer.Option(help="Copy the base models too.")] = True,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database, versions, files and base models to a folder, while servers go on."""
    from service.backups.making import back_up

    about = back_up(Registry.open(home), target, bases=bases, tell=_tell)
    if as_json:
        print(about.model_dump_json(indent=1))
    else:
        out.print(f"{target}: {_in_words(about.counts)}", highlight=False, soft_wrap=True)
    for what in about.lost:
        complain(f"not in the backup, since the home has it no more: {what}")
    if about.lost:
        raise typer.Exit(FAILED)


def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `modiste backup` made.")],
    home: Home = None,
) -> None:
    """Fill an empty home, its database and its stores from a backup."""
    from service.backups.restoring import restore as bring_back

    about, counts = bring_back(source, HomeFolder.find(home), _tell)
    made = f"{about.made:%Y-%m-%d %H:%M} UTC"
    out.print(f"restored as of {made}: {_in_words(counts)}", highlight=False, soft_wrap=True)
    for what in about.lost:
        complain(f"not in the backup: {what}")


def _tell(step: str) -> None:
    err.print(step, highlight=False, soft_wrap=True)


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
