"""Long text in sentences and chunks that join to exactly the same text again.

Where a sentence ends is the library sentencex's decision (rules and abbreviations
of about 300 languages, offline).
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sentencex  # type: ignore[import-untyped]

from adapters import placeholders

_INITIAL = re.compile(r"\w\.")
_JOINABLE = ("", " ")


@dataclass(frozen=True, slots=True)
class Sentence:
    """Characters `start` to `end` of a text, then `gap`, the white space up to the next."""

    start: int
    text: str
    gap: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def join(sentences: Iterable[Sentence]) -> str:
    return "".join(sentence.text + sentence.gap for sentence in sentences)


def split(text: str, language: str) -> list[Sentence]:
    """Sentences of a text; `join` gives the text back.

    Only the first one can be empty: when the text begins with white space.
    """
    sentences: list[Sentence] = []
    position = 0
    for segment in sentencex.segment(language.partition("-")[0].lower(), text):
        words = segment.strip()
        lead = segment[: len(segment) - len(segment.lstrip())] if words else segment
        if lead and sentences:
            last = sentences[-1]
            sentences[-1] = Sentence(last.start, last.text, last.gap + lead)
        elif lead:
            sentences.append(Sentence(position, "", lead))
        if words:
            start = position + len(lead)
            gap = segment[len(lead) + len(words) :]
            _append(sentences, Sentence(start, words, gap))
        position += len(segment)
    return sentences


def _append(sentences: list[Sentence], sentence: Sentence) -> None:
    """Add a sentence, or lengthen the last one when that is just `M.` of `M. Dupont`."""
    last = sentences[-1] if sentences else None
    if last is not None and last.gap == " " and _INITIAL.fullmatch(last.text):
        whole = last.text + last.gap + sentence.text
        sentences[-1] = Sentence(last.start, whole, sentence.gap)
    else:
        sentences.append(sentence)


def pack(
    sentences: Sequence[Sentence], token_starts: Sequence[int], target: int, limit: int
) -> list[Sentence]:
    """Chunks of whole sentences: about `target` tokens each, none over `limit`.

    A chunk spans no gap but one space or none, so paragraph breaks and other white
    space never pass through a model. A sentence over `limit` tokens is cut between
    words. `token_starts` are the character offsets at which the text's tokens begin.
    """

    def tokens(start: int, end: int) -> int:
        return bisect_left(token_starts, end) - bisect_left(token_starts, start)

    chunks: list[Sentence] = []
    for sentence in sentences:
        last = chunks[-1] if chunks else None
        if (
            last is not None
            and last.text
            and last.gap in _JOINABLE
            and tokens(last.start, sentence.end) <= min(target, limit)
        ):
            whole = last.text + last.gap + sentence.text
            chunks[-1] = Sentence(last.start, whole, sentence.gap)
        elif tokens(sentence.start, sentence.end) <= limit:
            chunks.append(sentence)
        else:
            chunks.extend(_cut(sentence, token_starts, limit))
    return chunks


def _cut(sentence: Sentence, token_starts: Sequence[int], limit: int) -> list[Sentence]:
    """A sentence in pieces of at most `limit` tokens, cut at white space where there is any."""
    spans = [(item.start, item.end) for item in placeholders.find(sentence.text)]
    pieces: list[Sentence] = []
    start = sentence.start
    while True:
        first = bisect_left(token_starts, start)
        if first + limit >= bisect_left(token_starts, sentence.end):
            rest = sentence.text[start - sentence.start :]
            return [*pieces, Sentence(start, rest, sentence.gap)]
        furthest = max(token_starts[first + limit], start + 1)
        end = _place(sentence.text, start - sentence.start, furthest - sentence.start, spans)
        piece = sentence.text[start - sentence.start : end]
        words = piece.rstrip()
        pieces.append(Sentence(start, words, piece[len(words) :]))
        start = sentence.start + end


def _place(text: str, start: int, furthest: int, spans: Sequence[tuple[int, int]]) -> int:
    """Where to cut `text[start:]`: after white space, else before a placeholder, else anywhere."""
    for end in range(furthest, start + 1, -1):
        inside = any(begin < end < finish for begin, finish in spans)
        if text[end - 1].isspace() and not inside:
            return end
    for begin, finish in spans:
        if start < begin < furthest < finish:
            return begin
    return furthest
