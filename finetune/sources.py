"""Files of examples, from a name, a glob, a URL or a folder that `datasets` saved, as records.

Records pass one by one; no file is held in memory, catalogues aside. A broken line costs nothing
but itself: it is noted with its file, number and reason, and reading goes on.
"""

import glob
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters.errors import InvalidInput
from finetune.catalogues import read_mo, read_po
from finetune.json_files import read_json
from finetune.reading import Broken, Entry, Reading, Record, Unreadable
from finetune.remote_files import copy_remote, find_remote, is_url
from finetune.tables import dataset_files, read_arrow, read_parquet
from finetune.text_files import read_csv, read_jsonl, read_tsv
from finetune.tmx import read_tmx

Reader = Callable[[Path, str | None, Counter[str]], Iterator[Entry]]
"""Takes a file, the encoding that the recipe names, and where to count what is left out."""

READERS: Mapping[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".po": read_po,
    ".mo": read_mo,
    ".tmx": read_tmx,
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file of data."""

    name: str
    """What messages and reports call it: its path, or its URL."""
    path: Path | None
    """Where it is read; None for a remote one that is not at hand."""

    @property
    def kind(self) -> str:
        return Path(self.name).suffix.lower()


def find_files(patterns: list[str], param: str) -> list[Source]:
    """Expand names, globs, URLs and folders, each file once, in the order given.

    Raises:
        InvalidInput: a pattern matches nothing, or a file is of an unknown kind.
        StoreFailed: a remote place can't be listed.
    """
    found: dict[str, Source] = {}
    for pattern in patterns:
        if is_url(pattern):
            files = [Source(url, None) for url in find_remote(pattern, param)]
        else:
            files = [Source(str(path), path) for path in _find_local(pattern, param)]
        for source in files:
            found.setdefault(source.name, source)
    for source in found.values():
        if source.kind not in READERS:
            raise InvalidInput(
                f"{param}: {source.name} is of an unknown kind",
                hint=f"the file's name ends with one of {', '.join(READERS)}",
                param=param,
            )
    return list(found.values())


def _find_local(pattern: str, param: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir() and (listed := dataset_files(path, param)) is not None:
        return listed
    # pathlib has no glob for patterns that may be absolute
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207
    names = [path] if path.exists() else sorted(Path(match) for match in matches)
    files = [name for name in names if name.is_file()]
    if not files:
        hint = f"write {pattern.rstrip('/')}/*.jsonl" if path.is_dir() else "check the path"
        raise InvalidInput(f"{param}: {pattern!r} matches no file", hint=hint, param=param)
    return files


@contextmanager
def at_hand(sources: Iterable[Source]) -> Iterator[dict[str, Source]]:
    """Sources by name, each with a path: remote ones are copied here for as long as this lasts.

    Raises:
        InvalidInput, StoreFailed: as `copy_remote`.
    """
    with TemporaryDirectory(prefix="modiste-data-") as folder:
        there: dict[str, Source] = {}
        for number, source in enumerate(sources):
            if source.name in there:
                continue
            place = source.path
            if place is None:
                place = Path(folder) / f"{number}{source.kind}"
                copy_remote(source.name, place, "data")
            there[source.name] = replace(source, path=place)
        yield there


def read_files(
    sources: Iterable[Source], reading: Reading, encoding: str | None = None
) -> Iterator[Record]:
    """Records of some files that are at hand, one by one; the rest is noted in `reading`.

    Args:
        encoding: of text files without a byte order mark; UTF-8 if None.
    """
    for source in sources:
        if source.path is None:
            raise ValueError(f"{source.name} is not at hand")
        seen, left_out = False, reading.skipped.total()
        try:
            for entry in READERS[source.kind](source.path, encoding, reading.skipped):
                seen = True
                if isinstance(entry.found, str):
                    where = source.name, entry.line
                    reading.note(Broken(*where, entry.found, entry.part, entry.code))
                else:
                    yield Record(source.name, entry.line, entry.found, entry.part)
        except Unreadable as error:
            reading.note(Broken(source.name, error.line, str(error), code=error.code))
        except OSError as error:
            reading.note(Broken(source.name, 1, f"can't be read: {error.strerror}"))
        else:
            if not seen and reading.skipped.total() == left_out:
                reading.note(Broken(source.name, 1, "has no records: fill it or leave it out"))
