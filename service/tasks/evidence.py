"""Where a context says what an answer says."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from service.tasks import sentences

MIN_F1 = 0.5
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
    """The context's sentence that shares most words with the answer, if it shares enough."""
    wanted = Counter(normalised(answer).split())
    best, best_score = None, MIN_F1
    for span in _sentences(context):
        score = _f1(wanted, Counter(normalised(context[slice(*span)]).split()))
        if score > best_score or (score == best_score and best is None):
            best, best_score = span, score
    return best


def _sentences(context: str) -> Iterator[Span]:
    for sentence in sentences.split(context, "en"):
        if sentence.text:
            yield sentence.start, sentence.end


def _f1(wanted: Counter[str], found: Counter[str]) -> float:
    shared = (wanted & found).total()
    return 2 * shared / (wanted.total() + found.total()) if shared else 0.0
