"""HOME/jobs: what is left in the folder of a job that has ended."""

import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from service.jobs.states import ENDED

KEPT = ("log",)
_UNKNOWN_S = 24 * 3600.0
"""Age of a folder whose job is not in the database, before it goes."""

Statuses = Callable[[Collection[str]], dict[str, str]]


def clear(folder: Path) -> None:
    """Remove the files, the run and what else there is, but not the log."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name in KEPT:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def sweep(jobs: Path, statuses: Statuses) -> None:
    """Clear the folders of jobs that have ended, also where their worker died before it could.

    A job that is not known any more leaves no log either: its project was deleted.

    Args:
        statuses: of the jobs that there are.

    Raises:
        OSError, StoreFailed: the rest is left for the next time.
    """
    if not jobs.is_dir():
        return
    found = [folder for folder in jobs.glob("ftjob-*") if folder.is_dir()]
    if not found:
        return
    known = statuses([folder.name for folder in found])
    for folder in found:
        status = known.get(folder.name)
        if status in ENDED and _is_full(folder):
            clear(folder)
        elif status is None and _age(folder) > _UNKNOWN_S:
            shutil.rmtree(folder, ignore_errors=True)


def _is_full(folder: Path) -> bool:
    return any(entry.name not in KEPT for entry in folder.iterdir())


def _age(folder: Path) -> float:
    return time.time() - folder.stat().st_mtime
