"""JSONL, CSV and TSV, read line by line in any encoding; a broken line costs only itself."""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from finetune.reading import MAX_CHARS, BadLine, Entry, Unreadable, check_text

_CELL_CHARS = 16 * 2**20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_text(path: Path, encoding: str | None, newline: str) -> TextIO:
    """Open a file in the encoding that its byte order mark says, else the one given, else UTF-8.

    Bytes that it does not have become lone surrogates, which `check_text` finds; in UTF-16 and
    UTF-32 they raise while reading.
    """
    with path.open("rb") as file:
        start = file.read(4)
    marked = [name for mark, name in _MARKS if start.startswith(mark)]
    name = marked[0] if marked else encoding or "utf-8"
    wide = codecs.lookup(name).name.startswith(("utf-16", "utf-32"))
    errors = "strict" if wide else "surrogateescape"
    return path.open(encoding=name, errors=errors, newline=newline)


def lines_of(file: TextIO) -> Iterator[str]:
    """Lines with their ends.

    Raises:
        Unreadable: a line is endless, or what follows is not in the file's encoding.
    """
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_CHARS)
        except UnicodeError as error:
            reason = f"is not {file.encoding.upper()}: {getattr(error, 'reason', error)}"
            raise Unreadable(number, reason, "wrong_encoding") from error
        if not line:
            return
        if len(line) == MAX_CHARS and not line.endswith(("\n", "\r")):
            raise Unreadable(number, f"is longer than {MAX_CHARS:,} characters")
        yield line


def read_jsonl(path: Path, encoding: str | None, _: Counter[str]) -> Iterator[Entry]:
    """One JSON object a line."""
    # U+2028 and its like are text in JSON: only \n ends a line
    with open_text(path, encoding, "\n") as file:
        for number, line in enumerate(lines_of(file), 1):
            if line.strip():
                yield _json_entry(number, line)


def _json_entry(number: int, line: str) -> Entry:
    try:
        value = json.loads(check_text(line))
    except json.JSONDecodeError as error:
        return Entry(number, f"is not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Entry(number, "is nested too deeply")
    except BadLine as error:
        return Entry(number, str(error), code=error.code)
    except ValueError as error:  # a number of thousands of digits
        return Entry(number, str(error))
    return Entry(number, value if isinstance(value, dict) else "is not a JSON object")


def read_csv(path: Path, encoding: str | None, _: Counter[str]) -> Iterator[Entry]:
    """Rows under a header line, cells parted by commas; a cell in quotes may hold line ends."""
    csv.field_size_limit(_CELL_CHARS)
    with open_text(path, encoding, "") as file:
        yield from _rows(csv.reader(lines_of(file), strict=True), "CSV")


def read_tsv(path: Path, encoding: str | None, _: Counter[str]) -> Iterator[Entry]:
    """Rows under a header line. A cell is what stands between tabs, quotation marks included."""
    csv.field_size_limit(_CELL_CHARS)
    with open_text(path, encoding, "\n") as file:
        lines = (line.rstrip("\r\n") for line in lines_of(file))
        yield from _rows(csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE), "TSV")


def _rows(rows: Any, kind: str) -> Iterator[Entry]:
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Entry(line, f"is not {kind}: {error}")
            continue
        if header is None:
            header = _header(line, cells, kind)
        elif len(cells) == len(header):
            yield Entry(line, dict(zip(header, cells, strict=True)))
        elif cells:
            yield Entry(line, f"has {len(cells)} cells, the header {len(header)}")


def _header(line: int, cells: list[str], kind: str) -> list[str]:
    try:
        names = [check_text(cell).strip() for cell in cells]
    except BadLine as error:
        raise Unreadable(line, f"the header {error}", error.code) from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise Unreadable(line, f"the header names the column {twice[0]!r} twice: rename one")
    other = next((mark for mark in ";\t," if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        right = "commas" if kind == "CSV" else "tabs"
        raise Unreadable(
            line, f"cells are parted by {other!r}, in {kind} they are by {right}: save it so"
        )
    return names
