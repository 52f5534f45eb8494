"""Which languages the texts of examples are in, by the library py3langid on a sample."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from finetune.data import Row
from finetune.text_checks import texts_of

_SAMPLE = 200
"""Examples that are looked at: the shares are known within some per cent."""
_READ, _LEAST_LETTERS, _SURE = 1_000, 24, 0.9
"""Characters that are read, letters that tell anything, and how likely the language must be."""

# rarer ones and dialects would take many texts from these
_KNOWN = re.findall(
    r"\w+",
    "af am ar az be bg bn bs ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id "
    "is it ja ka kk km kn ko lo lt lv mk ml mn mr ms my ne nl no pa pl ps pt ro ru si sk sl sq "
    "sr sv sw ta te th tl tr uk ur uz vi zh zu",
)


def languages_of(rows: Sequence[Row], *, answers: bool) -> dict[str, dict[str, int]]:
    """Language (ISO 639-1) -> number of texts, for inputs and, if asked, answers.

    Short texts and doubtful verdicts are not counted.
    """
    chosen = sorted(rows, key=lambda row: row.key)[:_SAMPLE]
    found = {"input": _counted([" ".join(_prose(row.input)) for row in chosen])}
    if answers:
        found["answer"] = _counted([row.references[0] for row in chosen])
    return found


def _prose(given: dict[str, Any]) -> list[str]:
    others = ("tools", "rejected")
    return list(texts_of({key: value for key, value in given.items() if key not in others}))


def _counted(texts: list[str]) -> dict[str, int]:
    verdicts = [code for text in texts if (code := _language(text[:_READ])) is not None]
    return dict(Counter(verdicts).most_common())


def _language(text: str) -> str | None:
    if sum(map(str.isalpha, text)) < _LEAST_LETTERS:
        return None
    code, likelihood = _identifier().classify(text)
    return str(code) if likelihood >= _SURE else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_KNOWN)
    return identifier
