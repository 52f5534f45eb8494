"""Which versions have series of their own in the metrics: so many at most, and not for ever.

Every version makes some sixty series a route. Were they kept for all that ever answered, a server
with many adapters would drown whoever scrapes it.
"""

from collections.abc import Callable, Collection
from time import monotonic

OTHER = "other"
"""Adapter and version of what has no series of its own."""

Pair = tuple[str, str]
"""Adapter and version, as labels."""

KEPT_S = 600.0
"""How long the series of a version stay that is unloaded and unused: many scrapes."""
KEPT_WHEN_FULL_S = 120.0
LOADED_KEPT_WHEN_FULL_S = 3600.0
"""Of one that is loaded and unused, while others have no place."""


class Series:
    """The pairs of adapter and version that are told apart.

    Args:
        most: so many at once; the base model is not counted.
    """

    def __init__(self, most: int, clock: Callable[[], float] = monotonic) -> None:
        self._most, self._clock = most, clock
        self._used: dict[Pair, float] = {}

    def labels(self, adapter: str, version: str) -> Pair:
        """The labels under which a request of a version is counted now."""
        pair = (adapter, version)
        if not adapter:  # the base, or no model at all
            return pair
        if pair not in self._used and len(self._used) >= self._most:
            return OTHER, OTHER
        self._used[pair] = self._clock()
        return pair

    def sweep(self, loaded: Collection[Pair]) -> list[Pair]:
        """Forget pairs that are long unused; their series are to be removed."""
        now, full = self._clock(), len(self._used) >= self._most
        kept = KEPT_WHEN_FULL_S if full else KEPT_S
        loaded_kept = LOADED_KEPT_WHEN_FULL_S if full else float("inf")
        gone = [
            pair
            for pair, used in self._used.items()
            if now - used > (loaded_kept if pair in loaded else kept)
        ]
        for pair in gone:
            del self._used[pair]
        return gone
