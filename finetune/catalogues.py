"""Gettext catalogues, PO and MO: what is translated, singular, current and not in doubt."""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polib

from finetune.reading import Entry, Unreadable


def read_po(path: Path, _: str | None, skipped: Counter[str]) -> Iterator[Entry]:
    """A catalogue in the encoding that its header names."""
    for entry in _entries(polib.pofile, path):
        if reason := _left_out(entry):
            skipped[reason] += 1
        else:
            yield Entry(entry.linenum, _fields(entry))


def read_mo(path: Path, _: str | None, skipped: Counter[str]) -> Iterator[Entry]:
    """A compiled catalogue has no lines: its entries are numbered instead."""
    for number, entry in enumerate(_entries(polib.mofile, path), 1):
        if reason := _left_out(entry):
            skipped[reason] += 1
        else:
            yield Entry(number, _fields(entry))


def _entries(read: Any, path: Path) -> list[Any]:
    try:
        return list(read(str(path)))
    except (OSError, ValueError, LookupError, struct.error) as error:
        line = re.search(r"line (\d+)", str(error))
        reason = f"is not a gettext catalogue: {error}"
        raise Unreadable(int(line[1]) if line else 1, reason) from error


def _left_out(entry: Any) -> str:
    if entry.msgid_plural:
        return "plural messages"
    if entry.obsolete:
        return "obsolete messages"
    if "fuzzy" in entry.flags:
        return "fuzzy messages"
    if not entry.msgid.strip() or not entry.msgstr.strip():
        return "untranslated messages"
    return ""


def _fields(entry: Any) -> dict[str, Any]:
    return {"source": entry.msgid, "target": entry.msgstr}
