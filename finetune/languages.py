"""Which languages the texts of examples are in, told on a sample."""

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any

from adapters.detection import letters, likeliest_language
from finetune.data import Row
from finetune.text_checks import texts_of

_SAMPLE = 200
"""Examples that are looked at: the shares are known within some per cent."""
_LEAST_LETTERS, _SURE = 24, 0.9
"""Letters that tell anything, and how likely the language must be."""
_NO_PROSE = ("tools", "rejected")


def languages_of(rows: Iterable[Row], *, answers: bool) -> dict[str, dict[str, int]]:
    """Language (BCP 47) -> number of texts, for inputs and, if asked, answers.

    Short texts and doubtful verdicts are not counted.
    """
    chosen = heapq.nsmallest(_SAMPLE, rows, key=lambda row: row.key)
    found = {"input": _counted([" ".join(_prose(row.input)) for row in chosen])}
    if answers:
        found["answer"] = _counted([row.references[0] for row in chosen])
    return found


def _prose(given: dict[str, Any]) -> list[str]:
    return list(texts_of({key: value for key, value in given.items() if key not in _NO_PROSE}))


def _counted(texts: list[str]) -> dict[str, int]:
    tags = [tag for text in texts if (tag := _language(text)) is not None]
    return dict(Counter(tags).most_common())


def _language(text: str) -> str | None:
    if letters(text) < _LEAST_LETTERS or (found := likeliest_language(text)) is None:
        return None
    tag, likelihood = found
    return tag if likelihood >= _SURE else None
