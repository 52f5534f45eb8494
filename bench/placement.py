"""Where requests for many adapters go, and what is loaded there: a simulation.

Adapters are asked for by Zipf's law. Two ways to place a request:

    round robin   the next server
    affinity      each adapter has an order of the servers of its own, as rendezvous hashing gives
                  it; the first of them that has room takes the request ("bounded loads")

A server keeps `places` versions loaded and `slots` of them in its GPUs, both least recently used
first out. The simulation begins in the steady state: of a cache whose entries are asked for
independently, the ages are exponential, so what is in it is known without a long run.
"""

import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np

MEASURED = 10_000
"""Requests that are counted."""
SAMPLED = 8
"""Servers that are simulated where all are alike."""
SEED = 20


@dataclass(frozen=True, slots=True)
class Fleet:
    """Alike servers, and how many requests all of them run at once."""

    servers: int
    running: int
    places: int
    slots: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen: shares of the requests, unless it says otherwise."""

    missed: float
    """Their version was not loaded."""
    copied: float
    """It was, but in no slot."""
    blocked: float
    """All slots were of other running adapters."""
    spilled: float
    """They did not go to their adapter's first server."""
    adapters: float
    """Different ones that run on a server, mean."""


def zipf(adapters: int, exponent: float) -> list[float]:
    """The share of requests of each adapter, the most asked for first."""
    weights = [(rank + 1) ** -exponent for rank in range(adapters)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


class Server:
    """What one server has loaded, and what it runs."""

    def __init__(self, fleet: Fleet, warm: Sequence[int]) -> None:
        """`warm`: what is loaded, the least recently used first."""
        self._places, self._slots = fleet.places, fleet.slots
        self._loaded = OrderedDict.fromkeys(warm)
        self._slotted = OrderedDict.fromkeys(list(warm)[-fleet.slots :])
        self.running: dict[int, int] = {}
        self.load = 0

    def begin(self, adapter: int) -> tuple[bool, bool, bool]:
        """Take a request; whether it missed, was copied, was blocked."""
        self.load += 1
        missed = _touch(self._loaded, adapter, self._places, self.running)
        if adapter in self.running:
            self.running[adapter] += 1
            self._slotted.move_to_end(adapter)
            return missed, False, False
        if len(self.running) >= self._slots:
            return missed, False, True
        self.running[adapter] = 1
        copied = _touch(self._slotted, adapter, self._slots, self.running)
        return missed, copied and not missed, False

    def end(self, adapter: int, *, blocked: bool) -> None:
        """A request that `begin` took has ended; one that was blocked held no slot."""
        self.load -= 1
        if not blocked:
            self.running[adapter] -= 1
            if not self.running[adapter]:
                del self.running[adapter]


def _touch(
    kept: "OrderedDict[int, None]", adapter: int, most: int, running: dict[int, int]
) -> bool:
    """Use an entry; whether it was missing. What runs stays."""
    missing = adapter not in kept
    kept[adapter] = None
    kept.move_to_end(adapter)
    while len(kept) > most:
        oldest = next(iter(kept))
        if oldest in running:
            kept.move_to_end(oldest)
        else:
            del kept[oldest]
    return missing


def mixed(number: int) -> int:
    """64 bits without a pattern (SplitMix64): quicker than a generator for each number."""
    mask = (1 << 64) - 1
    number = (number * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & mask
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
    return number ^ (number >> 31)


class Orders:
    """Each adapter's own order of the servers: a walk with a step that reaches all of them."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._known: dict[int, tuple[int, int]] = {}

    def of(self, adapter: int) -> Iterator[int]:
        if adapter not in self._known:
            chance = mixed(adapter)
            step = (chance >> 32) % self._servers + 1
            while math.gcd(step, self._servers) != 1:
                step += 1
            self._known[adapter] = chance % self._servers, step
        start, step = self._known[adapter]
        return ((start + turn * step) % self._servers for turn in range(self._servers))


def round_robin(fleet: Fleet, shares: Sequence[float], measured: int = MEASURED) -> Figures:
    """All servers see the same mixture, so a few of them stand for all."""
    servers = min(fleet.servers, SAMPLED)
    draw = np.random.default_rng(SEED)
    rates = np.asarray(shares)
    everybody = np.arange(len(shares))
    state = [Server(fleet, _warm(draw, everybody, rates, fleet.places)) for _ in range(servers)]
    turns = (number % servers for number in range(1 << 62))
    running = max(servers, fleet.running * servers // fleet.servers)
    return _run(state, shares, running, measured, lambda _: (next(turns), False))


def affinity(
    fleet: Fleet, shares: Sequence[float], spill: float, measured: int = MEASURED
) -> Figures:
    """`spill`: a server has room up to so many times the mean of what runs."""
    orders = Orders(fleet.servers)
    draw = np.random.default_rng(SEED)
    state = [
        Server(fleet, _with_spilled(_warm(draw, np.asarray(who), np.asarray(how), fleet.places),
                                    fleet.places, len(shares)))
        for who, how in _settled(orders, fleet.servers, shares, spill)
    ]  # fmt: skip
    most = math.ceil(spill * fleet.running / fleet.servers)

    def choose(adapter: int) -> tuple[int, bool]:
        for turn, server in enumerate(orders.of(adapter)):
            if state[server].load < most:
                return server, turn > 0
        raise AssertionError("together they have room for more than runs")

    return _run(state, shares, fleet.running, measured, choose)


def _settled(
    orders: Orders, servers: int, shares: Sequence[float], spill: float
) -> list[tuple[list[int], list[float]]]:
    """For each server the adapters that it gets, and how much of each."""
    room = [spill / servers] * servers
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in range(servers)]
    for adapter, share in enumerate(shares):
        left = share
        for server in orders.of(adapter):
            taken = min(left, room[server])
            if taken > 0:
                room[server] -= taken
                left -= taken
                found[server][0].append(adapter)
                found[server][1].append(taken)
            if left <= 0:
                break
    return found


def _with_spilled(own: list[int], places: int, adapters: int) -> list[int]:
    """What a server was sent beyond its own share stays where there is room: the popular ones."""
    have = set(own)
    popular = (adapter for adapter in range(adapters) if adapter not in have)
    return [*reversed(list(islice(popular, places - len(own)))), *own]


def _warm(
    draw: np.random.Generator, adapters: "np.ndarray", rates: "np.ndarray", places: int
) -> list[int]:
    """What such a cache has loaded in the steady state, the least recently used first."""
    ages = draw.exponential(size=len(adapters)) / rates
    latest = np.argsort(ages, kind="stable")[:places]
    return [int(adapter) for adapter in adapters[latest][::-1]]


def _run(
    servers: Sequence[Server],
    shares: Sequence[float],
    running: int,
    measured: int,
    choose: Callable[[int], tuple[int, bool]],
) -> Figures:
    """Every request takes equally long, so they end in the order in which they began."""
    chance = random.Random(SEED)  # noqa: S311  # a simulation
    stream = chance.choices(
        range(len(shares)), cum_weights=list(accumulate(shares)), k=running + measured
    )
    at_work: deque[tuple[int, int, bool]] = deque()
    sums = [0, 0, 0, 0]
    different = 0
    for number, adapter in enumerate(stream):
        if number >= running:
            place, ended, blocked = at_work.popleft()
            servers[place].end(ended, blocked=blocked)
        place, spilled = choose(adapter)
        seen = (*servers[place].begin(adapter), spilled)
        at_work.append((place, adapter, seen[2]))
        if number >= running:
            sums = [total + what for total, what in zip(sums, seen, strict=True)]
            different += len(servers[place].running)
    each = [total / measured for total in sums]
    return Figures(each[0], each[1], each[2], each[3], different / measured)
