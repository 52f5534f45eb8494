"""Who shares the engine lately, and for whom a place is kept.

Requests of one project that come together also end together, so all places may be taken for the
length of an answer when another project's request comes. While somebody who holds less than its
share was there lately and has nothing queued, whoever would have more than its own share leaves
a sixteenth of the places free. One project alone takes all of them, and so do several that
all wait: the queue gives them their turns.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable

from service.admission.fair import Path

LATELY_S = 60.0
KEPT = 16
LEAST = 4
"""Of fewer places none is kept."""


def kept_of(places: int) -> int:
    """How many of so many places are kept."""
    return 0 if places < LEAST else max(1, places // KEPT)


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

    def see(self, flow: Path, now: float) -> None:
        """A request of a project has come."""
        if flow not in self._last:
            self._weights[flow[0]] += self._weigh(flow)
        self._last[flow] = now
        self._last.move_to_end(flow)
        while (first := next(iter(self._last.items())))[1] < now - LATELY_S:
            del self._last[first[0]]
            self._weights[first[0][0]] -= self._weigh(first[0])

    def hold(self, flow: Path, more: int) -> None:
        """A project holds so many places more."""
        self._held[flow] += more
        if not self._held[flow]:
            del self._held[flow]

    def kept_from(self, flow: Path, places: int, of: int, queued: Callable[[Path], int]) -> int:
        """How many places a project leaves free that wants so many more of them.

        Args:
            of: all places.
            queued: what a project has in the queue.
        """
        kept = kept_of(of)
        if not kept or self._held[flow] + places <= self._share(flow, of):
            return 0
        return kept if any(self._may_come(other, flow, of, queued) for other in self._last) else 0

    def _may_come(self, other: Path, flow: Path, of: int, queued: Callable[[Path], int]) -> bool:
        return (
            other != flow
            and other[0] == flow[0]
            and self._held[other] < self._share(other, of)
            and not queued(other)
        )

    def _share(self, flow: Path, of: int) -> float:
        return of * self._weigh(flow) / max(self._weights[flow[0]], self._weigh(flow))
