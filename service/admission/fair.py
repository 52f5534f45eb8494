"""Whose turn it is: a fair queue over nested flows, counted in tokens; no clock, no event loop.

The algorithm is the virtual token counter (Sheng et al., "Fairness in Serving Large Language
Models", 2024): start-time fair queueing (Goyal et al., 1996) whose costs are corrected once they
are known. Each flow counts the tokens that it was given, over its weight; the backlogged flow
that counts least is next, and one that comes back from idleness begins where the others are. It
is done level by level, as in hierarchical fair queueing (Bennett and Zhang, 1996), so what
happens within a project doesn't change its share. A flow that takes less than its share may save a
little of it, so that its requests need not come as evenly as its share does.
"""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count, pairwise
from typing import Generic, TypeVar

T = TypeVar("T")

Path = tuple[str, ...]
"""From the outermost flow to the innermost; all of one queue are equally long."""

MOST_IDLE = 1024
"""Flows of a level that are remembered while they have nothing queued."""


class _Flow(Generic[T]):
    """A flow, and the flows within it; the innermost hold items instead."""

    __slots__ = (
        "active", "active_weight", "backlog", "children", "clock", "counter", "heap", "items",
        "queued", "weight",
    )  # fmt: skip

    def __init__(self, weight: float, counter: float) -> None:
        self.weight = weight
        self.counter = counter
        """Tokens that it was given over its weight, as its parent counts."""
        self.queued = False
        """Whether it is among those that its parent chooses from."""
        self.backlog = 0
        self.clock = 0.0
        """The counter that the child served last had before."""
        self.active, self.active_weight = 0, 0.0
        """The children that have something queued."""
        self.children: dict[str, _Flow[T]] = {}
        self.heap: list[tuple[float, int, _Flow[T]]] = []
        """Children by their counters; what no longer holds is dropped when it comes up."""
        self.items: dict[T, int] = {}
        """In the order of their coming, with their costs."""


class FairQueue(Generic[T]):
    """Items of flows, each with a cost; `pop` gives the one whose turn it is.

    Args:
        weigh: a flow's weight among its siblings, from its path; above 0.
        credit: the cost that a flow may have saved, from its path; 0 or more.
    """

    def __init__(
        self, weigh: Callable[[Path], float], credit: Callable[[Path], float] = lambda _: 0.0
    ) -> None:
        self._weigh, self._credit = weigh, credit
        self._root: _Flow[T] = _Flow(1.0, 0.0)
        self._paths: dict[T, Path] = {}
        self._ties = count()

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, item: object) -> bool:
        return item in self._paths

    @property
    def backlog(self) -> int:
        """The cost of all that is queued."""
        return self._root.backlog

    def push(self, path: Path, item: T, cost: int) -> None:
        """Queue an item behind those of its flow."""
        flows = self._flows(path)
        self._paths[item] = path
        flows[-1].items[item] = cost
        for depth, (parent, flow) in enumerate(pairwise(flows), 1):
            parent.backlog += cost
            if not flow.queued:
                flow.queued = True
                flow.counter = max(flow.counter, self._earliest(parent, path[:depth], flow.weight))
                parent.active += 1
                parent.active_weight += flow.weight
                heappush(parent.heap, (flow.counter, next(self._ties), flow))
        flows[-1].backlog += cost

    def peek(self) -> T | None:
        """The item whose turn it is; None when nothing is queued."""
        return self._first_of(self._root) if self._paths else None

    def peek_past(self, path: Path) -> Iterator[T]:
        """The items whose turn it would be without those of a flow, sibling by sibling."""
        parent = self._flow(path[:-1])
        if parent is not None:
            for key, flow in sorted(parent.children.items(), key=lambda pair: pair[1].counter):
                if flow.queued and key != path[-1]:
                    yield self._first_of(flow)

    def pop(self) -> T:
        """Take the item whose turn it is, and count its cost. Raises IndexError when empty."""
        item = self.peek()
        if item is None:
            raise IndexError("nothing is queued")
        self.take(item)
        return item

    def take(self, item: T) -> None:
        """Take an item, out of turn maybe, and count its cost. Raises KeyError: it isn't queued."""
        flows, cost = self._take(item)
        for parent, flow in pairwise(flows):
            parent.clock = max(parent.clock, flow.counter)
            self._count(parent, flow, cost)

    def charge(self, path: Path, cost: int) -> None:
        """Count an item that is served at once: as `push` and `pop` where nothing is queued."""
        for depth, (parent, flow) in enumerate(pairwise(self._flows(path)), 1):
            flow.counter = max(flow.counter, self._earliest(parent, path[:depth], flow.weight))
            parent.clock = max(parent.clock, flow.counter)
            flow.counter += cost / flow.weight

    def remove(self, item: T) -> None:
        """Take an item out of turn; it costs nothing. Raises KeyError: it is not queued."""
        self._take(item)

    def settle(self, path: Path, more: int) -> None:
        """Correct the count of a flow by what an item really cost more (or less) than was said."""
        parent = self._root
        for key in path:
            flow = parent.children.get(key)
            if flow is None:  # idle, and forgotten since
                return
            self._count(parent, flow, more)
            parent = flow

    def ahead(self, path: Path) -> float:
        """What is served before an item that would be queued now; at most all that is queued.

        Siblings are taken to have enough queued for their whole share, so it may be too much.
        """
        chain: list[tuple[_Flow[T], _Flow[T] | None, float, float]] = []
        parent: _Flow[T] | None = self._root
        for depth, key in enumerate(path, 1):
            if parent is None:
                break
            flow = parent.children.get(key)
            weight = self._weigh(path[:depth]) if flow is None else flow.weight
            chain.append((parent, flow, weight, self._earliest(parent, path[:depth], weight)))
            parent = flow
        before = 0.0 if parent is None else float(parent.backlog)
        for parent, flow, weight, earliest in reversed(chain):
            others = parent.active_weight - (weight if flow is not None and flow.queued else 0.0)
            lead = (parent.clock if flow is None else max(flow.counter, earliest)) - parent.clock
            before = min(parent.backlog, before + max(0.0, lead + before / weight) * others)
        return before

    def newest_of_heaviest(self, path: Path) -> T | None:
        """Of the flow within this one that has most queued for its weight: the last item."""
        flow = self._flow(path)
        if flow is None or not flow.backlog:
            return None
        while not flow.items:
            flow = max(flow.children.values(), key=lambda child: child.backlog / child.weight)
        return next(reversed(flow.items))

    def backlog_of(self, path: Path) -> int:
        """The cost of what a flow has queued."""
        flow = self._flow(path)
        return 0 if flow is None else flow.backlog

    # within

    def _earliest(self, parent: "_Flow[T]", path: Path, weight: float) -> float:
        """Where a flow begins that comes back from idleness, by its parent's clock."""
        return parent.clock - self._credit(path) / weight

    def _flow(self, path: Path) -> "_Flow[T] | None":
        flow: _Flow[T] | None = self._root
        for key in path:
            flow = None if flow is None else flow.children.get(key)
        return flow

    def _flows(self, path: Path) -> list["_Flow[T]"]:
        """The flows along a path, the root first; made where they are not there yet."""
        flows = [self._root]
        for depth, key in enumerate(path):
            parent = flows[-1]
            flow = parent.children.get(key)
            if flow is None:
                if len(parent.children) - parent.active >= MOST_IDLE:
                    _forget(parent)
                flow = _Flow(self._weigh(path[: depth + 1]), parent.clock)
                parent.children[key] = flow
            flows.append(flow)
        return flows

    def _first_of(self, flow: "_Flow[T]") -> T:
        while not flow.items:
            flow = self._first(flow)
        return next(iter(flow.items))

    def _first(self, parent: "_Flow[T]") -> "_Flow[T]":
        while True:
            counter, _, flow = parent.heap[0]
            if flow.queued and counter == flow.counter:
                return flow
            heappop(parent.heap)

    def _take(self, item: T) -> tuple[list["_Flow[T]"], int]:
        """The flows that it was in, the root first, and its cost."""
        flows = self._flows(self._paths.pop(item))
        leaf = flows[-1]
        cost = leaf.items.pop(item)
        for flow in flows:
            flow.backlog -= cost
        for parent, flow in zip(flows[-2::-1], flows[:0:-1], strict=True):
            if flow.items or flow.active:
                break  # and so has all that is around it
            flow.queued = False
            parent.active -= 1
            parent.active_weight = parent.active_weight - flow.weight if parent.active else 0.0
        return flows, cost

    def _count(self, parent: "_Flow[T]", flow: "_Flow[T]", cost: int) -> None:
        flow.counter += cost / flow.weight
        if flow.queued:
            heappush(parent.heap, (flow.counter, next(self._ties), flow))


def _forget(parent: _Flow[T]) -> None:
    """Drop idle flows: first those that would begin anew just so, all where they are too many."""
    for most in (parent.clock, float("inf")):
        idle = [k for k, f in parent.children.items() if not f.queued and f.counter <= most]
        for key in idle:
            del parent.children[key]
        if len(parent.children) - parent.active < MOST_IDLE // 2:
            return
