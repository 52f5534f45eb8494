"""The mark of a backup that is whole, and what it tells."""

from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from adapters.database import SCHEMA, AliasRow, VersionRow
from adapters.digests import digest_file, sync_file
from adapters.errors import InvalidInput
from adapters.records import READY
from service.database import BatchRow, FileRow, JobRow
from service.files import lives

MARK = "backup.json"
DATABASE = "modiste.db"
PARTIAL = ".partial"
"""Ends the name of a backup's folder until it is whole."""
FORMAT = 1


class About(BaseModel):
    """What `backup.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    program: str
    tables: str
    """The database's revision."""
    made: datetime
    home: Path
    database: str
    """Digest of the database's copy."""
    bases: list[str]
    """Names of the base models that are in it."""
    counts: dict[str, int]
    lost: list[str]
    """What the home named and did not have whole."""


def write_about(
    folder: Path, home: Path, counts: dict[str, int], bases: list[str], lost: list[str]
) -> About:
    """Mark a backup as whole; everything else in it is on the disk by now."""
    database = folder / DATABASE
    about = About(
        format=FORMAT, program=installed("modiste"), tables=SCHEMA, made=datetime.now(UTC),
        home=home, database=digest_file(database), bases=bases, counts=counts, lost=lost,
    )  # fmt: skip
    (folder / MARK).write_text(about.model_dump_json(indent=1) + "\n")
    sync_file(folder / MARK)
    sync_file(folder)
    return about


def read_about(folder: Path) -> About:
    """What a backup is.

    Raises:
        InvalidInput: it is none, is not whole, or was altered.
    """
    mark = folder / MARK
    if not mark.is_file():
        raise InvalidInput(
            f"{folder} is no whole backup: it has no {MARK}",
            hint=f"name a folder that `modiste backup` made; what it began ends with {PARTIAL}",
            param="source",
        )
    try:
        about = About.model_validate_json(mark.read_bytes())
    except ValidationError as error:
        raise InvalidInput(
            f"{mark} can't be read: {error.errors()[0]['msg']}",
            hint="restore from another backup, or with the program that made this one",
            param="source",
        ) from error
    if about.format != FORMAT or about.tables > SCHEMA:
        raise InvalidInput(
            f"{folder} was made by a newer program, {about.program}",
            hint="restore it with that program", param="source",
        )  # fmt: skip
    database = folder / DATABASE
    if not database.is_file() or digest_file(database) != about.database:
        raise InvalidInput(
            f"{database} is missing or was altered", hint="restore from another backup",
            param="source",
        )  # fmt: skip
    return about


def counted(database: Engine) -> dict[str, int]:
    """How much there is, for people to compare."""
    queries = {
        "versions": select(func.count()).select_from(VersionRow).where(VersionRow.state == READY),
        "aliases": select(func.count()).select_from(AliasRow),
        "jobs": select(func.count()).select_from(JobRow),
        "files": select(func.count()).select_from(FileRow).where(lives()),
        "batches": select(func.count()).select_from(BatchRow),
    }
    with Session(database) as session:
        return {name: session.scalar(query) or 0 for name, query in queries.items()}
