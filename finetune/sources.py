"""Files of examples: JSONL, CSV, TSV, PO and MO, read line by line.

A broken line costs nothing but itself: it is noted with its file, number and reason,
and reading goes on.
"""

import csv
import glob
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polib

from adapters.errors import InvalidInput

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".po", ".mo")
_CELL_BYTES = 16 * 1024 * 1024


class BadLine(ValueError):
    """Why one line cannot be used."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that cannot be used."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file, with the names that the file gives."""

    path: str
    line: int
    fields: dict[str, Any]


@dataclass(slots=True)
class Reading:
    """What reading some files gave; `skipped` counts records left out on purpose."""

    records: list[Record] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class BrokenData(InvalidInput):
    """Lines of the data that cannot be used, all of them."""

    def __init__(self, broken: list[Broken]) -> None:
        lines = "".join(f"\n  {item}" for item in broken)
        count = "1 broken line" if len(broken) == 1 else f"{len(broken)} broken lines"
        super().__init__(
            f"the data has {count}:{lines}",
            hint="mend them, or set data.on_broken=skip to go on without them",
            param="data",
        )
        self.broken = broken


def find_files(patterns: list[str], param: str) -> list[Path]:
    """Expand files and globs, each file once, in the order given.

    Raises:
        InvalidInput: a pattern matches nothing, or a file is of an unknown kind.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        # pathlib has no glob for patterns that may be absolute
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207
        names = [path] if path.exists() else sorted(Path(match) for match in matches)
        files = [name for name in names if name.is_file()]
        if not files:
            hint = f"write {pattern.rstrip('/')}/*.jsonl" if path.is_dir() else "check the path"
            raise InvalidInput(f"{param}: {pattern!r} matches no file", hint=hint, param=param)
        found.update(dict.fromkeys(files))
    for name in found:
        if name.suffix.lower() not in SUFFIXES:
            raise InvalidInput(
                f"{param}: {name} is of an unknown kind",
                hint=f"the file's name ends with one of {', '.join(SUFFIXES)}",
                param=param,
            )
    return list(found)


def read_files(paths: list[Path]) -> Reading:
    """Read all records of some files."""
    reading = Reading()
    for path in paths:
        kind = path.suffix.lower()
        if kind in (".po", ".mo"):
            _read_catalogue(path, reading)
            continue
        rows = _json_rows(path) if kind in (".jsonl", ".ndjson") else _table_rows(path, kind)
        for line, row in rows:
            if isinstance(row, str):
                reading.broken.append(Broken(str(path), line, row))
            else:
                reading.records.append(Record(str(path), line, row))
    return reading


def check_text(text: str) -> str:
    """Return text unchanged if it can be encoded as UTF-8.

    Files are opened with `surrogateescape`, so a byte that is no UTF-8 shows up here.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadLine("is not UTF-8")
    return text


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers with a record or the reason why there is none."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_row(line)


def _json_row(line: str) -> dict[str, Any] | str:
    try:
        value = json.loads(check_text(line))
    except json.JSONDecodeError as error:
        return f"is not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return "is nested too deeply"
    except BadLine as error:
        return str(error)
    if not isinstance(value, dict):
        return "is not a JSON object"
    return value


def _table_rows(path: Path, kind: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows of a CSV or TSV file under its header line."""
    csv.field_size_limit(_CELL_BYTES)
    with path.open(
        encoding="utf-8-sig", errors="surrogateescape", newline="" if kind == ".csv" else "\n"
    ) as file:
        # A TSV cell is what stands between two tabs; a quotation mark in it is only a mark.
        rows = (
            csv.reader(file, strict=True)
            if kind == ".csv"
            else csv.reader(
                (line.rstrip("\r\n") for line in file), "excel-tab", quoting=csv.QUOTE_NONE
            )
        )
        header: list[str] | None = None
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, f"is not {kind[1:].upper()}: {error}"
                continue
            if header is None:
                header = cells
            elif cells:
                yield line, _table_row(header, cells)


def _table_row(header: list[str], cells: list[str]) -> dict[str, Any] | str:
    if len(cells) != len(header):
        return f"has {len(cells)} cells, the header {len(header)}"
    return dict(zip(header, cells, strict=True))


def _read_catalogue(path: Path, reading: Reading) -> None:
    """A gettext catalogue: what is translated, singular, current and not in doubt."""
    try:
        if path.suffix.lower() == ".po":
            entries = list(polib.pofile(str(path)))
        else:
            entries = list(polib.mofile(str(path)))
    except (OSError, ValueError, LookupError, struct.error) as error:
        line = re.search(r"line (\d+)", str(error))
        reason = f"is not a gettext catalogue: {error}"
        reading.broken.append(Broken(str(path), int(line[1]) if line else 1, reason))
        return
    for position, entry in enumerate(entries, 1):
        if entry.msgid_plural:
            reading.skipped["plural messages"] += 1
        elif entry.obsolete:
            reading.skipped["obsolete messages"] += 1
        elif "fuzzy" in entry.flags:
            reading.skipped["fuzzy messages"] += 1
        elif not entry.msgid.strip() or not entry.msgstr.strip():
            reading.skipped["untranslated messages"] += 1
        else:
            # a compiled catalogue has no lines: its entries are numbered instead
            line_number = entry.linenum if path.suffix.lower() == ".po" else position
            fields = {"source": entry.msgid, "target": entry.msgstr}
            reading.records.append(Record(str(path), line_number, fields))
