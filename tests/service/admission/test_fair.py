"""The fair queue: its order, its shares, and what idleness and corrections change."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.admission.fair import MOST_IDLE, FairQueue, Path

PROJECTS, ADAPTERS = ("a", "b", "c"), ("x", "y")
COSTS = st.integers(1, 50)


def queue_of(**weights: float) -> FairQueue[Any]:
    return FairQueue(lambda path: weights.get(path[-1], 1.0))


def drain(queue: FairQueue[Any]) -> list[Any]:
    return [queue.pop() for _ in range(len(queue))]


class Queue(RuleBasedStateMachine):
    """Any order of arrivals, services, departures and corrections."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = queue_of(a=2.0, b=0.5)
        self.waiting: dict[int, tuple[Path, int]] = {}
        self.numbers = 0

    @rule(project=st.sampled_from(PROJECTS), adapter=st.sampled_from(ADAPTERS), cost=COSTS)
    def arrive(self, project: str, adapter: str, cost: int) -> None:
        self.numbers += 1
        self.waiting[self.numbers] = (project, adapter), cost
        self.queue.push((project, adapter), self.numbers, cost)

    @precondition(lambda self: self.waiting)
    @rule()
    def serve(self) -> None:
        shown = self.queue.peek()
        taken = self.queue.pop()
        assert shown == taken
        path, _ = self.waiting.pop(taken)
        assert all(taken < other for other, (its, _) in self.waiting.items() if its == path)

    @precondition(lambda self: self.waiting)
    @rule(project=st.sampled_from(PROJECTS))
    def serve_another(self, project: str) -> None:
        others = list(self.queue.peek_past((project,)))
        projects = [self.waiting[item][0][0] for item in others]
        waiting = {its[0] for its, _ in self.waiting.values()}
        assert sorted(projects) == sorted(waiting - {project})
        if others:
            self.queue.take(others[0])
            del self.waiting[others[0]]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        self.queue.remove(item)
        del self.waiting[item]
        assert item not in self.queue

    @rule(project=st.sampled_from(PROJECTS), adapter=st.sampled_from(ADAPTERS),
          more=st.integers(-50, 200))  # fmt: skip
    def settle(self, project: str, adapter: str, more: int) -> None:
        self.queue.settle((project, adapter), more)

    @invariant()
    def somebody_is_next_while_anybody_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert (self.queue.peek() is None) == (not self.waiting)

    @invariant()
    def the_backlog_is_what_waits(self) -> None:
        assert self.queue.backlog == sum(cost for _, cost in self.waiting.values())
        for project in PROJECTS:
            for adapter in ADAPTERS:
                path = project, adapter
                own = sum(cost for its, cost in self.waiting.values() if its == path)
                assert self.queue.backlog_of(path) == own
                assert own - 1e-6 <= self.queue.ahead(path) <= self.queue.backlog


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40)


FLOWS = st.tuples(st.sampled_from(PROJECTS), st.sampled_from(ADAPTERS))


@given(
    served=st.lists(st.tuples(FLOWS, COSTS, st.integers(-20, 60)), max_size=30),
    waiting=st.lists(st.tuples(FLOWS, COSTS), max_size=30),
)
def test_what_is_served_at_once_counts_as_if_it_had_been_queued(
    served: list[tuple[Path, int, int]], waiting: list[tuple[Path, int]]
) -> None:
    queued, charged = queue_of(a=2.0, b=0.5), queue_of(a=2.0, b=0.5)
    for path, cost, more in served:
        queued.push(path, "now", cost)
        queued.pop()
        charged.charge(path, cost)
        for queue in (queued, charged):
            queue.settle(path, more)
    for number, (path, cost) in enumerate(waiting):
        assert charged.ahead(path) == queued.ahead(path)
        for queue in (queued, charged):
            queue.push(path, number, cost)

    for path in product(PROJECTS, ADAPTERS):  # the order of equals is another thing
        assert charged.ahead(path) == queued.ahead(path)


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=4),
    costs=st.lists(st.lists(COSTS, min_size=30, max_size=30), min_size=4, max_size=4),
)
def test_backlogged_flows_never_part_by_more_than_a_request_each(
    weights: list[float], costs: list[list[int]]
) -> None:
    flows = [f"f{number}" for number in range(len(weights))]
    by_flow = dict(zip(flows, weights, strict=True))
    queue = queue_of(**by_flow)
    for flow, its in zip(flows, costs, strict=False):
        for at, cost in enumerate(its):
            queue.push((flow,), (flow, at), cost)
    served, left = Counter[str](), Counter(dict.fromkeys(flows, 30))
    while min(left.values()) > 0:  # all are backlogged
        flow, at = queue.pop()
        served[flow] += costs[flows.index(flow)][at]
        left[flow] -= 1
        for one in flows:
            for other in flows:
                bound = 50 / by_flow[one] + 50 / by_flow[other]
                lag = served[one] / by_flow[one] - served[other] / by_flow[other]
                assert lag <= bound + 1e-6


@given(flood=st.integers(1, 400), costs=st.lists(COSTS, min_size=1, max_size=20))
def test_one_that_floods_never_starves_another(flood: int, costs: list[int]) -> None:
    queue = queue_of()
    for number in range(flood):
        queue.push(("flood", "x"), number, 50)
    for _ in range(flood // 2):
        queue.pop()
    for at, cost in enumerate(costs):
        queue.push(("light", "x"), ("light", at), cost)
    order = drain(queue)
    last = order.index(("light", len(costs) - 1))
    before = sum(isinstance(item, int) for item in order[:last])
    assert 50 * before <= sum(costs) + 50


@given(alone=st.integers(1, 200))
def test_idleness_collects_no_credit(alone: int) -> None:
    queue = queue_of()
    queue.push(("idle", "x"), "once", 10)
    queue.pop()
    for number in range(alone):
        queue.push(("busy", "x"), number, 10)
        queue.pop()
    for number in range(20):
        queue.push(("busy", "x"), ("busy", number), 10)
        queue.push(("idle", "x"), ("idle", number), 10)
    first = Counter(name for name, _ in drain(queue)[:10])
    assert abs(first["idle"] - first["busy"]) <= 2


@given(alone=st.integers(0, 100), credit=st.integers(0, 200), weight=st.sampled_from([0.5, 1, 3]))
def test_what_idleness_saves_is_bounded(alone: int, credit: int, weight: float) -> None:
    queue: FairQueue[Any] = FairQueue(
        lambda path: weight if path == ("idle",) else 1.0,
        lambda path: float(credit) if path == ("idle",) else 0.0,
    )
    queue.charge(("idle", "x"), 10)
    for _ in range(alone):
        queue.charge(("busy", "x"), 10)
    for number in range(40):
        queue.push(("busy", "x"), ("busy", number), 10)
        queue.push(("idle", "x"), ("idle", number), 10)
    before = 0
    while queue.pop()[0] == "idle":
        before += 10
    saved = min(credit, max(0.0, weight * 10 * alone - 10))
    assert abs(before - saved) <= 10 + 10 * weight


def test_a_project_gains_nothing_by_more_adapters() -> None:
    queue = queue_of()
    for number in range(40):
        queue.push(("many", f"adapter-{number}"), ("many", number), 10)
        queue.push(("one", "x"), ("one", number), 10)
    served = Counter(name for name, _ in drain(queue)[:40])
    assert abs(served["many"] - served["one"]) <= 2


def test_adapters_of_a_project_share_what_it_gets() -> None:
    queue = queue_of()
    for number in range(60):
        queue.push(("p", "x"), number, 10)
    for number in range(10):
        queue.push(("p", "y"), ("y", number), 10)
    order = drain(queue)[:20]
    assert sum(isinstance(item, tuple) for item in order) >= 9


@pytest.mark.parametrize("more", [20, -9])
def test_what_was_said_wrong_is_corrected(more: int) -> None:
    """One flow says a cost of 10 and uses another; what it is given follows what it used."""
    queue = queue_of()
    for number in range(400):
        queue.push(("wrong", "x"), ("wrong", number), 10)
        queue.push(("right", "x"), ("right", number), 10)
    used = Counter[str]()
    for _ in range(200):
        name, _ = queue.pop()
        used[name] += 10 + (more if name == "wrong" else 0)
        if name == "wrong":
            queue.settle(("wrong", "x"), more)
    assert used["wrong"] == pytest.approx(used["right"], rel=0.05)


def test_what_is_ahead_of_a_newcomer_is_its_flows_own_share() -> None:
    queue = queue_of()
    for number in range(100):
        queue.push(("flood", "x"), number, 10)
    assert queue.ahead(("flood", "x")) == 1000
    assert queue.ahead(("new", "x")) == 0
    for number in range(3):
        queue.push(("new", "x"), ("new", number), 10)
    assert queue.ahead(("new", "x")) == 60  # its own, and as much of the other's


def test_the_heaviest_flow_is_the_one_with_most_for_its_weight() -> None:
    queue = queue_of(paid=10.0)
    for number in range(5):
        queue.push(("paid", "x"), ("paid", number), 10)
        queue.push(("free", "x"), ("free", number), 9)
    queue.push(("free", "y"), "last", 9)
    assert queue.newest_of_heaviest(()) == ("free", 4)
    assert queue.newest_of_heaviest(("paid",)) == ("paid", 4)
    assert queue.newest_of_heaviest(("nobody",)) is None
    assert queue_of().newest_of_heaviest(()) is None


def test_idle_flows_are_forgotten() -> None:
    queue = queue_of()
    for number in range(3 * MOST_IDLE):
        queue.push((f"p{number}", "x"), number, 10)
        queue.pop()
    assert len(queue._root.children) <= MOST_IDLE + 1
