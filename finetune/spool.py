"""Sequences whose items lie on disk: memory is needed for where each one ends.

Examples and token ids are larger in memory than the files they came from. So they are written as
they are made, and read again one by one.
"""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Self, TypeVar, overload

T = TypeVar("T")

_IN_MEMORY = 4 * 2**20
"""Bytes up to which nothing is written to TMPDIR."""


class Lazy(Sequence[T]):
    """A sequence that makes its items when they are asked for; a slice of it is a list."""

    __hash__ = None  # type: ignore[assignment]  # as a list

    @abstractmethod
    def item(self, position: int) -> T:
        """The item at a position that is there, counted from 0."""

    @overload
    def __getitem__(self, position: int) -> T: ...
    @overload
    def __getitem__(self, position: slice) -> list[T]: ...
    def __getitem__(self, position: int | slice) -> T | list[T]:
        if isinstance(position, slice):
            return [self.item(place) for place in range(*position.indices(len(self)))]
        return self.item(range(len(self))[position])

    def __iter__(self) -> Iterator[T]:
        return map(self.item, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


class Chosen(Lazy[T]):
    """Some items of a sequence, in the order of the places given."""

    def __init__(self, items: Sequence[T], places: Iterable[int]) -> None:
        self._items, self._places = items, array("Q", places)

    def __len__(self) -> int:
        return len(self._places)

    def item(self, position: int) -> T:
        return self._items[self._places[position]]


def where(items: Sequence[T], wanted: Callable[[T], bool]) -> Chosen[T]:
    """The items that are wanted, each asked for once."""
    return Chosen(items, (place for place, item in enumerate(items) if wanted(item)))


class Spool(Lazy[T]):
    """Items in a file that goes with the last reference, or in one that is there.

    One thread at a time uses it. A copy that is pickled reads the same file again, or brings along
    what was in the temporary one.

    Args:
        encode, decode: an item as bytes, and back.
    """

    def __init__(self, encode: Callable[[T], bytes], decode: Callable[[bytes], T]) -> None:
        self._encode, self._decode = encode, decode
        self._ends = array("Q")
        self._path: Path | None = None
        self._file: IO[bytes] = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - see __del__

    @classmethod
    def of_lines(
        cls, path: Path, encode: Callable[[T], bytes], decode: Callable[[bytes], T]
    ) -> Self:
        """The lines of a file, which is not changed as long as this lives, but may be replaced."""
        found = cls(encode, decode)
        found._path, found._file = path, path.open("rb")
        end = 0
        for line in found._file:
            end += len(line)
            found._ends.append(end)
        return found

    def __len__(self) -> int:
        return len(self._ends)

    def item(self, position: int) -> T:
        return self._decode(self._bytes(position))

    def append(self, item: T) -> None:
        self._append(self._encode(item))

    def taken(self, places: Iterable[int]) -> "Spool[T]":
        """A spool of its own with the items at these places; this one's file can go."""
        found = Spool(self._encode, self._decode)
        for place in places:
            found._append(self._bytes(place))
        return found

    def _append(self, data: bytes) -> None:
        start = self._ends[-1] if self._ends else 0
        self._file.seek(start)
        self._file.write(data)
        self._ends.append(start + len(data))

    def _bytes(self, position: int) -> bytes:
        start = self._ends[position - 1] if position else 0
        self._file.seek(start)
        return self._file.read(self._ends[position] - start)

    def __del__(self) -> None:
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_file": None}
        if self._path is None:
            self._file.seek(0)
            state["_file"] = self._file.read()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        path, content = state["_path"], state["_file"]
        self._file = BytesIO(content) if path is None else path.open("rb")
