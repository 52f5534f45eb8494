"""JSON files: a list of records, `{"data": [records]}`, and SQuAD's nesting of both.

The list is read value by value, so a file of one long line needs no more memory than its
largest value.
"""

import json
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TextIO

from finetune.reading import MAX_CHARS, BadLine, Entry, Unreadable, check_text
from finetune.text_files import open_text

_CHUNK = 256 * 1024
_NEAR_END = 16
"""A value cut off by the buffer's end fails so near to it, unless inside a text."""


def read_json(path: Path, encoding: str | None, _: Counter[str]) -> Iterator[Entry]:
    """Records of a list, of the list `data` of an object, or objects one after the other."""
    with open_text(path, encoding, "\n") as file:
        scanner = _Scanner(file)
        first = scanner.peek()
        if first not in ("[", "{", ""):
            raise Unreadable(scanner.line, "is neither a list nor an object in JSON")
        if first == "[":
            yield from _elements(scanner)
            _end(scanner)
            return
        number = 0
        while scanner.peek() == "{":
            number += 1
            line = scanner.line
            fields: dict[str, Any] = {}
            listed = yield from _members(scanner, fields)
            if not listed:
                yield from _entries(line, str(number), fields)
        _end(scanner)


def _end(scanner: "_Scanner") -> None:
    if scanner.peek():
        raise Unreadable(scanner.line, "is not JSON: something follows the end")


def _members(scanner: "_Scanner", fields: dict[str, Any]) -> Generator[Entry, None, bool]:
    """Fill in an object's members; the records of a list `data` are yielded instead.

    Returns whether there was one.
    """
    scanner.take("{")
    listed = False
    while scanner.peek() != "}":
        line, key = scanner.line, scanner.value()
        if not isinstance(key, str):
            raise Unreadable(line, "is not JSON: a name must be text")
        scanner.take(":")
        if key == "data" and scanner.peek() == "[":
            listed = True
            yield from _elements(scanner)
        else:
            fields[key] = scanner.value()
        if scanner.peek() != "}":
            scanner.take(",")
    scanner.take("}")
    return listed


def _elements(scanner: "_Scanner") -> Iterator[Entry]:
    scanner.take("[")
    number = 0
    while scanner.peek() != "]":
        number += 1
        line = scanner.line
        yield from _entries(line, str(number), scanner.value())
        if scanner.peek() != "]":
            scanner.take(",")
    scanner.take("]")


def _entries(line: int, part: str, value: Any) -> Iterator[Entry]:
    if not isinstance(value, dict):
        yield Entry(line, "is not a JSON object", part)
    elif "paragraphs" in value:
        yield from _questions(line, part, value)
    else:
        yield Entry(line, value, part)


def _questions(line: int, part: str, article: dict[str, Any]) -> Iterator[Entry]:
    """One record for each question of a SQuAD article."""
    title = article.get("title")
    for n, paragraph in enumerate(_objects(article["paragraphs"]), 1):
        place = f"{part}.{n}"
        questions = paragraph.get("qas") if paragraph is not None else None
        if paragraph is None or not isinstance(questions, list):
            yield Entry(line, "a paragraph has no list 'qas' of questions", place)
            continue
        shared = {"context": paragraph.get("context")}
        if title is not None:
            shared["title"] = title
        for m, question in enumerate(_objects(questions), 1):
            if question is None:
                yield Entry(line, "a question is not a JSON object", f"{place}.{m}")
            else:
                yield Entry(line, shared | question, str(question.get("id", f"{place}.{m}")))


def _objects(value: Any) -> list[dict[str, Any] | None]:
    items = value if isinstance(value, list) else [value]
    return [item if isinstance(item, dict) else None for item in items]


class _Scanner:
    """Values of a JSON text one at a time; holds one value and a chunk."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._passed = 1  # the line at which `_text` begins

    @property
    def line(self) -> int:
        """Of the next character that is no white space, after `peek`."""
        return self._line_at(self._at)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill(_CHUNK):
                return ""

    def take(self, expected: str) -> None:
        if self.peek() != expected:
            raise Unreadable(self.line, f"is not JSON: {expected!r} is missing")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole.

        Raises:
            Unreadable: it is broken, cut off or too large.
        """
        self.peek()
        more = _CHUNK
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string")
                cut_off |= error.pos >= len(self._text) - _NEAR_END
                within = error.pos - self._at  # filling moves the text
                if not cut_off or not self._fill(more):
                    reason = f"is not JSON: {error.msg}"
                    raise Unreadable(self._line_at(self._at + within), reason) from error
            except RecursionError as error:
                raise Unreadable(self.line, "is nested too deeply") from error
            except ValueError as error:  # a number of thousands of digits
                raise Unreadable(self.line, str(error)) from error
            else:
                length = end - self._at
                # a number may go on in the next chunk
                if end < len(self._text) or not self._fill(more):
                    self._at += length
                    return found
            more *= 2
            if len(self._text) > MAX_CHARS:
                raise Unreadable(self.line, f"a value is longer than {MAX_CHARS:,} characters")

    def _fill(self, chars: int) -> bool:
        self._passed += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :], 0
        try:
            chunk = self._file.read(chars)
        except UnicodeDecodeError as error:
            reason = f"is not {self._file.encoding.upper()}: {error.reason}"
            number = self._line_at(len(self._text))
            raise Unreadable(number, reason, "wrong_encoding") from error
        first = self._line_at(len(self._text))
        for number, line in enumerate(chunk.split("\n"), first):
            try:
                check_text(line)
            except BadLine as error:
                raise Unreadable(number, str(error), error.code) from error
        self._text += chunk
        return bool(chunk)

    def _line_at(self, position: int) -> int:
        return self._passed + self._text.count("\n", 0, position)
