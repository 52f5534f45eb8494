"""What reading data gives: records, and what could not be read with file, line and reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from adapters.errors import InvalidInput

MAX_CHARS = 64 * 2**20
"""Of one line or one JSON value: a file without line ends is told, not held in memory."""

_KEPT = 10_000
_SHOWN_REASONS = 20
_SHOWN_LINES = 3


class BadLine(ValueError):
    """Why one record cannot be used.

    Args:
        code: the finding that it is, a key of `findings.CODES`.
    """

    def __init__(self, reason: str, code: str = "unusable_record") -> None:
        super().__init__(reason)
        self.code = code


class LeftOut(ValueError):
    """Why one record is left out on purpose; it is counted by this text."""


class Unreadable(ValueError):
    """Why a file cannot be read from some line on."""

    def __init__(self, line: int, reason: str, code: str = "unreadable_record") -> None:
        super().__init__(reason)
        self.line = line
        self.code = code


@dataclass(frozen=True, slots=True)
class Entry:
    """What a reader finds at one place of a file."""

    line: int
    """Starts at 1; in files without lines (MO, Parquet, Arrow) the number of the entry."""
    found: dict[str, Any] | str
    """The fields of a record, or the reason why there is none."""
    part: str = ""
    """Which record of the line it is, where a line may have many."""
    code: str = "unreadable_record"
    """What is wrong, where there is no record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file, with the names that the file gives."""

    path: str
    line: int
    fields: dict[str, Any]
    part: str = ""

    @property
    def origin(self) -> str:
        return _place(self.path, self.line, self.part)


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that cannot be used."""

    path: str
    line: int
    reason: str
    part: str = ""
    code: str = "unusable_record"

    def __str__(self) -> str:
        return f"{_place(self.path, self.line, self.part)}: {self.reason}"


def _place(path: str, line: int, part: str) -> str:
    return f"{path}:{line}" + (f"#{part}" if part else "")


@dataclass(slots=True)
class Reading:
    """What is noted while records pass; `skipped` counts those left out on purpose."""

    broken: list[Broken] = field(default_factory=list)
    """The first ones; `broken_count` counts all."""
    broken_count: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def note(self, item: Broken) -> None:
        self.broken_count += 1
        if len(self.broken) < _KEPT:
            self.broken.append(item)


class BrokenData(InvalidInput):
    """Records that cannot be used: each reason with the places where it was met first."""

    def __init__(self, reading: Reading) -> None:
        count = reading.broken_count
        lines = "".join(f"\n  {line}" for line in _told(reading))
        super().__init__(
            f"the data has {'1 broken line' if count == 1 else f'{count} broken lines'}:{lines}",
            hint="mend them, or set data.on_broken=skip to go on without them",
            param="data",
        )
        self.broken = reading.broken


def _told(reading: Reading) -> list[str]:
    """Lines of a message: a column that lacks in a million lines is told in a few."""
    groups: dict[tuple[str, str], list[Broken]] = {}
    for item in reading.broken:
        groups.setdefault((item.path, item.reason), []).append(item)
    lines, left = [], reading.broken_count
    for (path, reason), items in list(groups.items())[:_SHOWN_REASONS]:
        lines += [str(item) for item in items[:_SHOWN_LINES]]
        left -= len(items)
        if len(items) > _SHOWN_LINES:
            lines.append(f"{path}: {len(items) - _SHOWN_LINES} more: {reason}")
    return [*lines, f"and {left} more"] if left else lines


def check_text(text: str) -> str:
    """Return text unchanged if it can be encoded as UTF-8 and has no NUL.

    Files are opened with `surrogateescape`, so a byte that is no UTF-8 shows up here.

    Raises:
        BadLine.
    """
    for position, character in enumerate(text) if not _is_plain(text) else ():
        if "\udc80" <= character <= "\udcff":
            raise BadLine(
                f"is not UTF-8: byte 0x{ord(character) - 0xDC00:02x} at character {position + 1} "
                "(save the file as UTF-8, or set data.encoding, for example cp1252)",
                "wrong_encoding",
            )
        if "\ud800" <= character <= "\udfff":
            reason = f"has half of a surrogate pair, \\u{ord(character):04x}"
            raise BadLine(reason, "wrong_encoding")
        if character == "\0":
            raise BadLine(
                "has a NUL character (if the file is UTF-16, set data.encoding=utf-16)",
                "wrong_encoding",
            )
    return text


def _is_plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
