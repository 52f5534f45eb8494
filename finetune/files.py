"""Folders of runs and sweeps: who works in one, and files in them that are whole or not there."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(folder: Path, busy: Exception) -> Iterator[None]:
    """Make a folder and hold it; two processes at work in one would spoil it.

    Raises:
        busy: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        yield


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is in its place once the block has ended well; a crash leaves the
    one that was there before."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file in UTF-8; as `whole`."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
