"""Slices of the held-out examples: those of a label, of a language, of a column's value."""

import numpy as np

from adapters.detection import detect_language
from adapters.gate import Slice
from adapters.languages import same_language
from finetune.data import Row
from finetune.metrics import Positions


def positions_of(part: Slice, rows: list[Row]) -> Positions:
    """Which examples belong to a slice, ascending; all of them where it names nothing."""
    return np.flatnonzero([_belongs(part, row) for row in rows])


def _belongs(part: Slice, row: Row) -> bool:
    if part.label is not None:
        return row.references[0] == part.label
    if part.language is not None:
        found = detect_language(input_text(row))
        return found is not None and same_language(found, part.language)
    return part.column is None or row.columns.get(part.column) == part.value


def input_text(row: Row) -> str:
    """What a person wrote of an input, without what surrounds it."""
    given = row.input
    if "messages" in given:
        said = [m["content"] for m in given["messages"] if m["role"] == "user"]
        return str(said[-1]) if said else ""
    return str(next(given[name] for name in ("text", "question", "prompt") if name in given))
