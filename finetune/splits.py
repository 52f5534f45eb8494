"""Train, validation and held-out, and samples of them, by digests alone.

So an example never changes sides when data is added or files are renamed. Examples lie on disk
(`spool.py`), but for those of which several may become one.
"""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from finetune.examples import Example
from finetune.spool import Spool, where

_SPARE = 128


class Sample:
    """At most `limit` of the examples that pass, in their order; room for about as many.

    Args:
        join: examples of one input become one with the answers of all: measured alone, each would
            count as if it were independent of the others, and be wrong where they are right.
    """

    def __init__(self, limit: int | None, *, join: bool = False) -> None:
        self._limit, self._join = limit, join
        self._kept: list[Example] | Spool[Example] = (
            [] if join else Spool(pickle.dumps, pickle.loads)
        )
        self._ranks: list[str] = []
        """What decides between examples; of equal ones the first stays."""
        self._places: dict[tuple[str, str], int] = {}

    def add(self, example: Example) -> None:
        if self._join:
            place = self._places.setdefault(_input(example), len(self._kept))
            if place < len(self._kept) and self._joined(place, example):
                return
        self._kept.append(example)
        if self._limit is None:
            return
        # what the split looks at is not looked at again: it would favour one end of the part
        self._ranks.append(example.key[8:])
        if len(self._kept) >= 2 * self._limit + _SPARE:
            self._cut(self._limit)

    def _joined(self, place: int, example: Example) -> bool:
        """Whether the example had an answer more; a mere repetition stays, to be told of."""
        assert isinstance(self._kept, list)  # noqa: S101 - as `join` says
        first = self._kept[place]
        references = tuple(dict.fromkeys(first.references + example.references))
        self._kept[place] = replace(first, references=references)
        return references != first.references

    def examples(self) -> Sequence[Example]:
        if self._limit is not None and len(self._kept) > self._limit:
            self._cut(self._limit)
        return self._kept

    def _cut(self, limit: int) -> None:
        places = sorted(sorted(range(len(self._ranks)), key=self._ranks.__getitem__)[:limit])
        self._ranks = [self._ranks[place] for place in places]
        if isinstance(self._kept, Spool):
            self._kept = self._kept.taken(places)
            return
        self._kept = [self._kept[place] for place in places]
        self._places = {}
        for place, example in enumerate(self._kept):
            self._places.setdefault(_input(example), place)


def _input(example: Example) -> tuple[str, str]:
    """What is asked, and what else the answer is measured by."""
    return example.key, str(sorted(example.columns.items()))


def sample(
    examples: Iterable[Example], limit: int | None, *, join: bool = False
) -> Sequence[Example]:
    """A sample that depends on the examples' content alone, in their order; see `Sample`."""
    chosen = Sample(limit, join=join)
    for example in examples:
        chosen.add(example)
    return chosen.examples()


@dataclass(slots=True)
class Parts:
    """Examples by what they are for."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    shared: int = 0
    """Examples left out because their input is held out with another group."""


def split_examples(
    examples: Iterable[Example],
    holdout_fraction: float,
    validation_fraction: float = 0.0,
    max_train: int | None = None,
    max_test: int | None = None,
    *,
    join: bool = False,
) -> Parts:
    """Part examples by digest; equal inputs, or those of a group, stay together.

    Args:
        join: those of one input become one in the parts that are measured; see `Sample`.

    Asked to hold out a part of few examples, it holds out the lowest digest's at least.
    """
    test_below, validation_from = holdout_fraction * 16**8, (1 - validation_fraction) * 16**8
    train = Sample(max_train)
    validation, test = Sample(None, join=join), Sample(max_test, join=join)
    for example in examples:
        place = int(example.side[:8], 16)
        if place < test_below:
            test.add(example)
        else:
            (validation if place >= validation_from else train).add(example)
    parts = Parts(train.examples(), validation.examples(), test.examples())
    if not parts.test and holdout_fraction > 0:
        _hold_one_out(parts, max_test, join=join)
    return _without_shared(parts)


def _hold_one_out(parts: Parts, max_test: int | None, *, join: bool) -> None:
    """Hold out the side with the lowest digest, where another one is left to learn from."""
    sides = {example.side for example in parts.train}
    if len(sides) > 1:
        lowest = min(sides)
        parts.test = sample((e for e in parts.train if e.side == lowest), max_test, join=join)
        parts.train = where(parts.train, lambda example: example.side != lowest)


def _without_shared(parts: Parts) -> Parts:
    """Two groups can share an input: what is held out of one is not learned from the other."""
    tested = {example.key for example in parts.test}
    validation = where(parts.validation, lambda example: example.key not in tested)
    seen = tested | {example.key for example in validation}
    train = where(parts.train, lambda example: example.key not in seen)
    shared = len(parts.train) - len(train) + len(parts.validation) - len(validation)
    return Parts(train, validation, parts.test, shared)
