"""Folders for what is on its way, which a killed server leaves and the next one removes."""

import shutil
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from adapters.scratch import held_folder, is_held

LOCKED = "held-"
"""Begins the name of a folder whose owner holds a lock on it."""
OLD_S = 24 * 3600.0
"""Other folders are left over after so long."""
_YOUNG_S = 60.0
"""A folder is made before it is locked."""


def scratch(within: Path) -> AbstractContextManager[Path]:
    """A folder for as long as the block runs, or as the process lives.

    Raises:
        OSError: it can't be made.
    """
    return held_folder(within, LOCKED)


def sweep(within: Path) -> int:
    """Remove the folders that nobody works in any more; returns how many."""
    removed = 0
    for folder in within.iterdir():
        with suppress(OSError):
            age_s = time.time() - folder.stat().st_mtime
            if folder.is_dir() and age_s > _YOUNG_S and _is_left(folder, age_s):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def _is_left(folder: Path, age_s: float) -> bool:
    if not folder.name.startswith(LOCKED):
        return age_s > OLD_S
    return not is_held(folder)
