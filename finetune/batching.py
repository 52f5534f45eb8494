"""Batches of a bounded number of tokens, of sequences of like length, in a seeded order."""

import random
from array import array
from collections.abc import Callable, Iterator, Sequence

from finetune.data import Row
from finetune.options import BatchBounds


def make_batches(
    lengths: Sequence[int], bounds: BatchBounds | int, seed: int | None = None
) -> list[list[int]]:
    """Part sequences into batches within bounds.

    Each sequence is in exactly one batch; one that is longer than the budget is alone.
    Sequences of like length share a batch, so that little is padded. The same arguments
    give the same batches.

    Args:
        lengths: tokens of each sequence, [N].
        bounds: of a batch; a number is of tokens, padding included.
        seed: shuffles equal lengths and the order of the batches; None leaves the
            batches from short to long.

    Returns:
        Positions in `lengths`, batch by batch.
    """
    tokens, examples = (bounds, None) if isinstance(bounds, int) else bounds
    order = list(range(len(lengths)))
    shuffler = None if seed is None else random.Random(seed)  # noqa: S311 - an order, no secret
    if shuffler is not None:
        shuffler.shuffle(order)
    order.sort(key=lambda position: lengths[position])
    batches: list[list[int]] = []
    current: list[int] = []
    for position in order:
        full = len(current) == examples
        if tokens is not None and (len(current) + 1) * lengths[position] > tokens:
            full = True
        if current and full:
            batches.append(current)
            current = []
        current.append(position)
    if current:
        batches.append(current)
    if shuffler is not None:
        shuffler.shuffle(batches)
    return batches


def derived_seed(seed: int, number: int, worker: int = 0) -> int:
    """Another seed for each pass or step, and each of several workers; the same everywhere."""
    return seed * 1_000_003 + number + (worker << 53)  # below that, no seed reaches


class Batches:
    """The batch of each step: pass after pass, each in an order of its own.

    Args:
        width: tokens that a row takes in a batch, padding aside.
    """

    def __init__(
        self, rows: Sequence[Row], width: Callable[[Row], int], bounds: BatchBounds, seed: int
    ) -> None:
        self.rows = rows
        self._widths = array("I", map(width, rows))
        self._bounds, self._seed = bounds, seed
        self._epoch, self._places = 0, self._places_of(0)
        self.per_epoch = len(self._places)

    def of(self, epoch: int) -> Iterator[list[Row]]:
        """The batches of one pass; every pass has as many."""
        return map(self._rows_at, self._places_of(epoch))

    def at(self, step: int) -> list[Row]:
        """The batch of a step, counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._places = epoch, self._places_of(epoch)
        return self._rows_at(self._places[position])

    def _places_of(self, epoch: int) -> list[list[int]]:
        return make_batches(self._widths, self._bounds, derived_seed(self._seed, epoch))

    def _rows_at(self, places: list[int]) -> list[Row]:
        return [self.rows[place] for place in places]


def split_batch(
    batch: list[Row], width: Callable[[Row], int], tokens: int | None
) -> list[list[Row]]:
    """Part a batch so that at most so many tokens go through the model at once, or not at all."""
    if tokens is None:
        return [batch] if batch else []
    parts = make_batches([width(row) for row in batch], tokens)
    return [[batch[position] for position in part] for part in parts]
