"""Who shares the engine lately, and for whom a place is kept.

Requests of one project that come together also end together, so all places may be taken for the
length of an answer when another project's request comes. While somebody who holds less than its
share was there lately and has nothing queued, whoever would have more than its own share leaves
some places free: a sixteenth, or as many as the other had at once in the last seconds, a quarter at
most. One project alone takes all of them, and so do several that all wait: the queue gives them
their turns.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable

from service.admission.fair import Path

LATELY_S = 60.0
PEAK_S = 10.0
"""So long it counts how many places somebody had at once."""
KEPT, MOST_KEPT = 16, 4
"""A sixteenth of the places at least, a quarter at most."""
LEAST = 4
"""Of fewer places none is kept."""


class Presence:
    """Projects of each class: when they were last there, and the places that they hold.

    Args:
        weigh: a project's weight, from its path (class, project).
    """

    def __init__(self, weigh: Callable[[Path], float]) -> None:
        self._weigh = weigh
        self._last: OrderedDict[Path, float] = OrderedDict()
        self._held = Counter[Path]()
        self._weights = defaultdict[str, float](float)
        """Of all that were there lately, by class."""
        self._peaks: dict[Path, tuple[int, float]] = {}
        """Of those that had several places at once: how many, and when."""

    def see(self, flow: Path, now: float) -> None:
        """A request of a project has come."""
        if flow not in self._last:
            self._weights[flow[0]] += self._weigh(flow)
        self._last[flow] = now
        self._last.move_to_end(flow)
        while (first := next(iter(self._last.items())))[1] < now - LATELY_S:
            del self._last[first[0]]
            self._peaks.pop(first[0], None)
            self._weights[first[0][0]] -= self._weigh(first[0])

    def hold(self, flow: Path, more: int, now: float) -> None:
        """A project holds so many places more."""
        self._held[flow] += more
        held = self._held[flow]
        if held > 1 and more > 0 and flow in self._last:
            peak, at = self._peaks.get(flow, (0, now))
            if held >= peak or at < now - PEAK_S:
                self._peaks[flow] = held, now
        if not held:
            del self._held[flow]

    def kept_from(
        self, flow: Path, places: int, of: int, queued: Callable[[Path], int], now: float
    ) -> int:
        """How many places a project leaves free that wants so many more of them.

        Args:
            of: all places.
            queued: what a project has in the queue.
        """
        if of < LEAST or self._held[flow] + places <= self.share(flow, of):
            return 0
        if not any(self._may_come(other, flow, of, queued) for other in self._last):
            return 0
        kept, most = max(1, of // KEPT), max(1, of // MOST_KEPT)
        for other, (peak, at) in self._peaks.items():
            if peak > kept and at > now - PEAK_S and self._may_come(other, flow, of, queued):
                kept = min(peak, most)
        return kept

    def share(self, flow: Path, of: int) -> float:
        """A project's part of so many places, among those that were there lately."""
        return of * self._weigh(flow) / max(self._weights[flow[0]], self._weigh(flow))

    def _may_come(self, other: Path, flow: Path, of: int, queued: Callable[[Path], int]) -> bool:
        return (
            other != flow
            and other[0] == flow[0]
            and self._held[other] < self.share(other, of)
            and not queued(other)
        )
