"""Answers of a batch on their way: kept in parts, joined in the file's order at the end.

A line of a part is `NUMBER<tab>KIND<tab>JSON`, the kind `o` for the output file and `e` for
that of errors.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from adapters.remote import Remote

OUTPUT, ERROR = "o", "e"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a line."""

    number: int
    kind: str
    told: dict[str, Any]

    def line(self) -> bytes:
        text = json.dumps(self.told, ensure_ascii=False)
        return f"{self.number}\t{self.kind}\t{text}\n".encode()


class Parts:
    """Parts in the file store.

    Args:
        scratch: a folder on this machine.
    """

    def __init__(self, contents: Remote, scratch: Path) -> None:
        self._contents, self._scratch = contents, scratch

    def write(self, batch: str, results: Sequence[Result]) -> str:
        """Store a part; returns its key.

        Raises:
            StoreFailed: nothing was stored.
        """
        key = f"batches/{batch}/{uuid4().hex}"
        with TemporaryDirectory(dir=self._scratch) as folder:
            place = Path(folder) / "part"
            with place.open("wb") as file:
                file.writelines(result.line() for result in results)
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

    def join(
        self, keys: Sequence[str], more: Iterable[Result], folder: Path
    ) -> tuple[Path | None, Path | None]:
        """The output file and the file of errors, where there is anything for them.

        Args:
            more: results that are in no part.

        Raises:
            StoreFailed: a part can't be read.
            OSError: the folder can't be written.
        """
        parts = [folder / f"part-{number}" for number in range(len(keys) + 1)]
        for key, place in zip(keys, parts, strict=False):
            self._contents.download(key, place)
        parts[-1].write_bytes(b"".join(result.line() for result in more))
        where: list[tuple[int, str, int, int, int]] = []
        for number, place in enumerate(parts):
            with place.open("rb") as file:
                begin = 0
                for line in file:
                    said, kind, text = line.split(b"\t", 2)
                    offset = begin + len(line) - len(text)
                    where.append((int(said), kind.decode(), number, offset, len(text)))
                    begin += len(line)
        where.sort()
        files = [place.open("rb") for place in parts]
        try:
            made = [_collect(where, kind, files, folder) for kind in (OUTPUT, ERROR)]
        finally:
            for one in files:
                one.close()
        return made[0], made[1]

    def remove(self, keys: Sequence[str]) -> None:
        """Raises StoreFailed when something stays."""
        self._contents.remove(list(keys))


def _collect(
    where: Sequence[tuple[int, str, int, int, int]], kind: str, files: Sequence[Any], folder: Path
) -> Path | None:
    place, wrote = folder / f"joined-{kind}", False
    with place.open("wb") as out:
        for _, its, part, offset, length in where:
            if its == kind:
                files[part].seek(offset)
                out.write(files[part].read(length))
                wrote = True
    return place if wrote else None
