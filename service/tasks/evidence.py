"""Where a context says what an answer says."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from service.tasks import sentences

MIN_SHARE = 0.5
"""Least share of an answer's words that its evidence has."""

Span = tuple[int, int]


def normalised(text: str) -> str:
    """Letters and digits only, folded: for comparing answers, not for showing them."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def _folded(text: str) -> tuple[str, list[int]]:
    """Text for searching, and for each of its characters the place it came from.

    Folding goes character by character so that places survive: compatibility forms
    decomposed, case folded, white space as one space.
    """
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if character.isspace():
            if not characters or characters[-1] != " ":
                characters.append(" ")
                places.append(place)
            continue
        for part in unicodedata.normalize("NFKD", character).casefold():
            characters.append(part)
            places.append(place)
    return "".join(characters), places


def occurrences(answer: str, context: str) -> list[Span]:
    """Spans of the context, in code points, that are the answer but for case and spacing."""
    wanted = _folded(answer.strip().rstrip("."))[0].strip()
    if not normalised(wanted):
        return []
    text, places = _folded(context)
    before = r"(?<!\w)" if wanted[0].isalnum() and not _unspaced(wanted[0]) else ""
    after = r"(?!\w)" if wanted[-1].isalnum() and not _unspaced(wanted[-1]) else ""
    return [
        (places[match.start()], places[match.end() - 1] + 1)
        for match in re.finditer(before + re.escape(wanted) + after, text)
    ]


def _unspaced(character: str) -> bool:
    """Whether words of this character's script are written without spaces."""
    return unicodedata.category(character) == "Lo" and not unicodedata.bidirectional(
        character
    ).startswith(("R", "AL"))


def best_sentence(answer: str, context: str) -> Span | None:
    """The context's sentence with most of the answer's words, if it has enough of them.

    Of several with equally many the one with least besides.
    """
    wanted = Counter(normalised(answer).split())
    best, best_score = None, (0.0, 0.0)
    for span in _sentences(context):
        found = Counter(normalised(context[slice(*span)]).split())
        shared = (wanted & found).total()
        score = (shared / max(1, wanted.total()), shared / max(1, found.total()))
        if score[0] >= MIN_SHARE and score > best_score:
            best, best_score = span, score
    return best


def _sentences(context: str) -> Iterator[Span]:
    for sentence in sentences.split(context, "en"):
        if sentence.text:
            yield sentence.start, sentence.end
