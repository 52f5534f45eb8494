"""Batches of a bounded number of tokens, of sequences of like length, in a seeded order."""

import random
from collections.abc import Sequence


def make_batches(
    lengths: Sequence[int], batch_tokens: int, seed: int | None = None
) -> list[list[int]]:
    """Part sequences into batches of at most `batch_tokens` tokens, padding included.

    Each sequence is in exactly one batch; one that is longer than the budget is alone.
    Sequences of like length share a batch, so that little is padded. The same arguments
    give the same batches.

    Args:
        lengths: tokens of each sequence, [N].
        seed: shuffles equal lengths and the order of the batches; None leaves the
            batches from short to long.

    Returns:
        Positions in `lengths`, batch by batch.
    """
    order = list(range(len(lengths)))
    shuffler = None if seed is None else random.Random(seed)  # noqa: S311 - an order, no secret
    if shuffler is not None:
        shuffler.shuffle(order)
    order.sort(key=lambda position: lengths[position])
    batches: list[list[int]] = []
    current: list[int] = []
    for position in order:
        if current and (len(current) + 1) * lengths[position] > batch_tokens:
            batches.append(current)
            current = []
        current.append(position)
    if current:
        batches.append(current)
    if shuffler is not None:
        shuffler.shuffle(batches)
    return batches


def derived_seed(seed: int, number: int) -> int:
    """Another seed for each pass or step, the same on every machine."""
    return seed * 1_000_003 + number
