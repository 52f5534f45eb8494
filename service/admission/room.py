"""How much of the engine is taken, and whether one more request has room in it."""

from dataclasses import dataclass

FRESH_S = 1.0
"""What the engine said longer ago is not believed: without requests it says nothing."""
FULL = 0.97
"""Of the KV cache: beyond it the engine takes running requests out again."""


def ahead_of(sequences: int) -> int:
    """So many more than the engine runs, that a place which becomes free is taken at once.

    None of few, whose place is free for a step in some hundred: whoever waits in the engine waits
    longer than he may, and out of turn.
    """
    return 0 if sequences < 16 else sequences // 8


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine told of itself.

    Attributes:
        tokens: that it read and wrote.
        waiting: requests for which it had no room.
        cache: share of its KV cache that is in use.
    """

    tokens: int
    waiting: int
    cache: float


class Room:
    """The engine's places, from its own figures.

    Args:
        sequences: that it runs in one step.
        tokens: of its KV cache; None: not known.
        most: of sequences, where the operator sets it.
    """

    def __init__(self, sequences: int, tokens: int | None = None, most: int | None = None) -> None:
        self.at_once = sequences if most is None else min(sequences, most)
        """Sequences that run in one step."""
        self._ahead = ahead_of(sequences)
        self.sequences = sequences + self._ahead if most is None else most
        """That may be in the engine; the last of them wait there for the next step."""
        self.tokens = tokens
        self.running = 0
        """Sequences that were let in and have not ended."""
        self.reserved = 0
        """Tokens of the KV cache that they are expected to fill."""
        self._step, self._at = Step(0, 0, 0.0), float("-inf")

    @property
    def widest(self) -> int:
        """Sequences of one request at once: others find room beside any one."""
        return max(1, self.sequences // 2)

    def reserve(self, tokens: int) -> int:
        """What is kept of the cache for so many; half at most, or all others would end first."""
        return tokens if self.tokens is None else min(tokens, self.tokens // 2)

    def observe(self, step: Step, now: float) -> None:
        self._step, self._at = step, now

    def fits(self, tokens: int, now: float) -> bool:
        """Whether a request that fills so many tokens may start.

        Its sequences may go beyond the last place: no place is kept empty until there are enough.
        """
        if self.running == 0:
            return True
        if self.running >= self.sequences:
            return False
        if self.tokens is not None and self.reserved + tokens > self.tokens:
            return False
        if now - self._at > FRESH_S:
            return True
        return self._step.waiting < max(1, self._ahead) and self._step.cache < FULL

    def take(self, sequences: int, tokens: int) -> None:
        """Count what is taken, or with negative numbers what is free again."""
        self.running += sequences
        self.reserved += tokens
