"""Answers of a batch on their way: kept in parts, joined in the file's order at the end."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from adapters.remote import Remote
from service.batches.results import ERROR, OUTPUT, Result
from service.scratch import scratch

FOLDER = "batches"
"""Of the file store."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A result's text in the file of all parts."""

    number: int
    kind: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The files that a caller gets, where there is anything for them.

    Attributes:
        lines: in both.
    """

    output: Path | None
    errors: Path | None
    lines: int


class Parts:
    """Parts in the file store.

    Args:
        folder: on this machine, for what is on its way.
    """

    def __init__(self, contents: Remote, folder: Path) -> None:
        self._contents, self._folder = contents, folder

    def write(self, batch: str, lines: Iterable[bytes]) -> str:
        """Store a part; returns its key.

        Raises:
            StoreFailed: nothing was stored.
            OSError: the folder can't be written.
        """
        key = f"{FOLDER}/{batch}/{uuid4().hex}"
        with scratch(self._folder) as folder:
            place = folder / "part"
            with place.open("wb") as file:
                file.writelines(lines)
            self._contents.upload(place, key)
        return key

    def numbers(self, keys: Iterable[str]) -> set[int]:
        """The lines that parts have.

        Raises:
            StoreFailed: one can't be read.
        """
        found: set[int] = set()
        for key in keys:
            for line in self._contents.read(key).splitlines():
                found.add(int(line.partition(b"\t")[0]))
        return found

    def join(self, keys: Sequence[str], more: Iterable[Result], folder: Path) -> Joined:
        """Put all results into files, in the order of their lines.

        Args:
            more: results that are in no part.

        Raises:
            StoreFailed: a part can't be read.
            OSError: the folder can't be written.
        """
        gathered = folder / "gathered"
        with gathered.open("w+b") as file:  # one file, however many parts there are
            places: dict[int, _Place] = {}
            for line in self._lines(keys, more):
                said, kind, text = line.split(b"\t", 2)
                place = _Place(int(said), kind.decode(), file.tell(), len(text))
                # a line that stands in two parts was counted once too often: the first stays
                if places.setdefault(place.number, place) is place:
                    file.write(text)
            ordered = [places[number] for number in sorted(places)]
            output, errors = (
                _collect(file, [place for place in ordered if place.kind == kind], folder / name)
                for kind, name in ((OUTPUT, "output"), (ERROR, "errors"))
            )
        return Joined(output, errors, len(ordered))

    def _lines(self, keys: Sequence[str], more: Iterable[Result]) -> Iterator[bytes]:
        for key in keys:
            yield from self._contents.read(key).splitlines(keepends=True)
        for result in more:
            yield result.line()

    def remove(self, batch: str, keys: Sequence[str]) -> None:
        """Raises StoreFailed when something stays."""
        self._contents.remove(list(keys))
        self._contents.remove_folder(f"{FOLDER}/{batch}")


def _collect(gathered: BinaryIO, places: Sequence[_Place], path: Path) -> Path | None:
    if not places:
        return None
    with path.open("wb") as out:
        for place in places:
            gathered.seek(place.offset)
            out.write(gathered.read(place.length))
    return path
