"""TMX, the exchange format of translation memories (version 1.4), read as a stream.

A file may name an external DTD, as most do; none is loaded. One that brings its own DTD, where
entities could be declared, is refused.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from finetune.reading import MAX_CHARS, Entry, Unreadable

_CHUNK = 64 * 1024


def read_tmx(path: Path, _encoding: str | None, _: Counter[str]) -> Iterator[Entry]:
    """One record a translation unit: `translation` has a text for each language of it.

    Codes inside a segment (`ph`, `bpt`, …) stay as their text, so that placeholders are kept.
    Properties of a unit are fields of their types' names. The file says its encoding itself.
    """
    parser = expat.ParserCreate()
    units = _Units(parser)
    last = False
    with path.open("rb") as file:
        while not last:
            chunk = file.read(_CHUNK)
            last = not chunk
            try:
                parser.Parse(chunk, last)
            except (Unreadable, expat.ExpatError, LookupError) as error:
                yield from units.take()
                raise _told(error) from error
            yield from units.take()


def _told(error: Exception) -> Unreadable:
    if isinstance(error, Unreadable):
        return error
    if isinstance(error, expat.ExpatError):
        return Unreadable(error.lineno, f"is not TMX: {expat.ErrorString(error.code)}")
    return Unreadable(1, f"is not TMX: {error}")  # an encoding that nobody knows


class _Units:
    """Collects the translation units that the parser passes."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._done: list[Entry] = []
        self._fields: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        self._line = 1
        self._language = ""
        self._property: str | None = None
        self._depth = 0
        self._segment: list[str] | None = None
        self._chars = 0
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.SkippedEntityHandler = self._skipped

    def take(self) -> list[Entry]:
        done, self._done = self._done, []
        return done

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1 and name != "tmx":
            raise Unreadable(self._parser.CurrentLineNumber, f"is not TMX but {name!r}")
        if name == "tu":
            self._fields, self._texts = {}, {}
            self._line = self._parser.CurrentLineNumber
            self._language = ""
        elif name == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang", "")
        elif name == "seg" or (name == "prop" and not self._language):
            self._property = attributes.get("type") if name == "prop" else None
            self._segment, self._chars = [], 0

    def _end(self, name: str) -> None:
        self._depth -= 1
        if name == "seg" and self._segment is not None:
            self._texts.setdefault(self._language, "".join(self._segment))
            self._segment = None
        elif name == "prop" and self._segment is not None:
            if self._property is not None:
                self._fields[self._property] = "".join(self._segment)
            self._segment = None
        elif name == "tu":
            fields = self._fields | {"translation": self._texts}
            self._done.append(Entry(self._line, fields))

    def _text(self, text: str) -> None:
        if self._segment is not None:
            self._segment.append(text)
            self._chars += len(text)
            if self._chars > MAX_CHARS:
                raise Unreadable(self._line, f"a segment is longer than {MAX_CHARS:,} characters")

    def _doctype(self, _name: str, _system: Any, _public: Any, internal: int) -> None:
        if internal:
            raise Unreadable(
                self._parser.CurrentLineNumber,
                "brings a DTD of its own, which may declare entities: remove the part in [ ]",
            )

    def _skipped(self, name: str, _parameter: int) -> None:
        raise Unreadable(
            self._parser.CurrentLineNumber, f"the entity {name!r} is not known: write its text"
        )
