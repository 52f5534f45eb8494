"""The simulation of placement: against theory, against what must hold, and the same each time."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.placement import Fleet, Orders, Server, affinity, round_robin, zipf

FLEET = Fleet(servers=6, running=120, places=60, slots=64)
SHARES = zipf(1000, 1.0)


def hits_in_theory(shares: list[float], places: int) -> float:
    """Che's approximation of a least-recently-used cache's hit ratio."""

    def kept(time: float) -> float:
        return math.fsum(1 - math.exp(-share * time) for share in shares)

    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) < places else (low, middle)
    return math.fsum(share * (1 - math.exp(-share * low)) for share in shares)


@given(st.integers(1, 500), st.floats(0.1, 2))
def test_shares_fall_and_add_up(adapters: int, exponent: float) -> None:
    shares = zipf(adapters, exponent)

    assert math.fsum(shares) == pytest.approx(1)
    assert all(one >= next_one for one, next_one in pairwise(shares))


@pytest.mark.parametrize("places", [30, 100, 300])
def test_round_robin_misses_as_the_theory_of_such_caches_says(places: int) -> None:
    figures = round_robin(Fleet(6, 60, places, 64), SHARES)

    assert figures.missed == pytest.approx(1 - hits_in_theory(SHARES, places), abs=0.015)


def test_affinity_misses_less_than_round_robin() -> None:
    by_adapter, by_turn = affinity(FLEET, SHARES, 1.25), round_robin(FLEET, SHARES)

    assert by_adapter.missed < 0.7 * by_turn.missed
    assert by_adapter.adapters < by_turn.adapters


def test_nothing_is_missed_where_every_adapter_has_a_place() -> None:
    fleet = Fleet(servers=4, running=40, places=20, slots=20)

    for figures in (round_robin(fleet, zipf(20, 1.0)), affinity(fleet, zipf(20, 1.0), 1.25)):
        assert figures.missed == figures.copied == figures.blocked == 0


def test_few_slots_hold_requests_up() -> None:
    fleet = Fleet(servers=1, running=40, places=1000, slots=4)

    assert round_robin(fleet, SHARES).blocked > 0.5


def test_an_adapter_that_half_the_world_asks_for_spills() -> None:
    shares = [0.5, *(0.5 / 99 for _ in range(99))]

    figures = affinity(Fleet(servers=10, running=100, places=100, slots=64), shares, 1.25)

    assert figures.spilled > 0.3


def test_the_same_simulation_gives_the_same_figures() -> None:
    assert affinity(FLEET, SHARES, 1.25, 2000) == affinity(FLEET, SHARES, 1.25, 2000)
    assert round_robin(FLEET, SHARES, 2000) == round_robin(FLEET, SHARES, 2000)


@given(st.integers(1, 60), st.integers(0, 10**6))
def test_an_adapters_order_has_each_server_once(servers: int, adapter: int) -> None:
    order = list(Orders(servers).of(adapter))

    assert sorted(order) == list(range(servers))
    assert order == list(Orders(servers).of(adapter))


@given(
    st.integers(1, 4), st.integers(1, 6),
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80),
)  # fmt: skip
def test_a_server_runs_no_more_adapters_than_it_has_slots(
    slots: int, more: int, events: list[tuple[bool, int]]
) -> None:
    server = Server(Fleet(1, 1, slots + more, slots), [])
    begun: list[tuple[int, bool]] = []
    for ends, adapter in events:
        if ends and begun:
            ended, blocked = begun.pop(0)
            server.end(ended, blocked=blocked)
        else:
            begun.append((adapter, server.begin(adapter)[2]))
        assert len(server.running) <= slots
        assert server.load == len(begun)
        assert sum(server.running.values()) == sum(not blocked for _, blocked in begun)
