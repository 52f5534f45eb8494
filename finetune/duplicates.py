"""Which texts are nearly equal, found without comparing all with all.

MinHash (Broder 1997, "On the resemblance and containment of documents"): the share of equal
minima of two texts' hashed shingles estimates the Jaccard similarity of their shingles. Bands of
minima are looked up, so only texts that share a band are compared (Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", 3.4). Kept of a text are its minima and its bands, 5 kB.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

NEAR = 0.8
"""Similarity from which two texts are near duplicates."""

_SHINGLE = 5
"""Characters."""
_BANDS, _ROWS = 24, 5
"""Texts that are similar by 0.8 share a band in 99.99 % of cases, by 0.5 in 53 %."""
_SHORTEST, _LONGEST = 24, 20_000
"""Characters. In shorter texts one other word is another text; of longer ones the start is read."""
_COMPARED = 8
"""Texts of a band that a text is compared with."""

_MULTIPLIERS: NDArray[np.uint64] = np.random.default_rng(1).integers(
    0, 2**64, (_BANDS * _ROWS, 1), np.uint64
) | np.uint64(1)
_SHIFTS = np.random.default_rng(2).integers(0, 2**64, (_BANDS * _ROWS, 1), np.uint64)
_BASE = np.uint64(0x9E3779B97F4A7C15)


def folded(text: str) -> str:
    """A text without what spellings differ in: case, accents, punctuation, white space."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    kept = (c if c.isalnum() else " " for c in parts if not unicodedata.combining(c))
    return " ".join("".join(kept).split())


def sketch(text: str, scope: str = "") -> NDArray[np.uint32] | None:
    """Minima of the text's shingles under 120 hash functions, [120]; None for a short text.

    Args:
        scope: texts of different scopes are never near each other.
    """
    plain = folded(text)[:_LONGEST]
    if len(plain) < _SHORTEST:
        return None
    points = np.frombuffer(plain.encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashed = np.zeros(len(points) - _SHINGLE + 1, np.uint64)
    for place in range(_SHINGLE):
        hashed = hashed * _BASE + points[place : len(points) - _SHINGLE + 1 + place]
    seed = hashlib.blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    hashed = np.unique(hashed) ^ np.frombuffer(seed, np.uint64)
    hashed = (hashed ^ (hashed >> np.uint64(31))) * _BASE  # shingles alike must not hash alike
    mixed = (hashed[None, :] * _MULTIPLIERS + _SHIFTS) >> np.uint64(32)  # [120, S]
    minima: NDArray[np.uint32] = mixed.min(axis=1).astype(np.uint32)
    return minima


class NearIndex:
    """Sketches of texts, to ask for one that is near another."""

    def __init__(self) -> None:
        self._sketches: dict[int, NDArray[np.uint32]] = {}
        self._bands: defaultdict[bytes, list[int]] = defaultdict(list)

    def add(self, number: int, of: NDArray[np.uint32]) -> None:
        self._sketches[number] = of
        for key in _keys(of):
            if len(self._bands[key]) < _COMPARED:
                self._bands[key].append(number)

    def __len__(self) -> int:
        return len(self._sketches)

    def near(self, of: NDArray[np.uint32]) -> Iterator[int]:
        """The numbers of texts whose similarity is estimated at 0.8 or more."""
        seen: set[int] = set()
        for key in _keys(of):
            for number in self._bands.get(key, ()):
                if number in seen:
                    continue
                seen.add(number)
                if float(np.mean(self._sketches[number] == of)) >= NEAR:
                    yield number


def _keys(of: NDArray[np.uint32]) -> list[bytes]:
    bands = of.reshape(_BANDS, _ROWS)
    return [bytes([number]) + band.tobytes() for number, band in enumerate(bands)]
