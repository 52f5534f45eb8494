"""Terms that a translation must render in one way."""

import re
import unicodedata
from collections.abc import Mapping

from adapters import placeholders

# Scripts written without spaces: a word's edge cannot be seen there.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def occurs(term: str, text: str) -> bool:
    """Whether a term is in a text as a word of its own, whatever the case."""
    term = _fold(term.strip())
    before = "" if _UNSPACED.match(term[0]) or not term[0].isalnum() else r"(?<!\w)"
    after = "" if _UNSPACED.match(term[-1]) or not term[-1].isalnum() else r"(?!\w)"
    return re.search(before + re.escape(term) + after, _fold(text)) is not None


def unhonoured(glossary: Mapping[str, str], source: str, translation: str) -> list[str]:
    """Terms of the source whose translation is missing, in the glossary's order.

    A translation counts inside a longer word too, since it may be inflected.
    """
    if not glossary:
        return []
    words, rendered = placeholders.blank(source), _fold(translation)
    return [
        term
        for term, wanted in glossary.items()
        if occurs(term, words) and _fold(wanted.strip()) not in rendered
    ]
