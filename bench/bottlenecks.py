"""Which part of a fleet gives out first, and what lifts it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil

from bench.placement import Figures, Fleet, affinity, round_robin, zipf
from bench.sizing import (
    ANSWER,
    ASSUMED,
    FRONT_END_S,
    MODELS,
    PLANNED,
    RANK,
    Input,
    Model,
    Server,
)
from bench.state_load import CONNECTIONS as MOST_CONNECTIONS
from bench.state_load import GETS, NETWORK, ROWS, STATEMENTS, Activity

ZIPF = Input("exponent of Zipf's law, for how often adapters are asked for", 1.0, "1.0", ASSUMED)
SPILL = Input(
    "affinity: a server has room up to so many times the mean", 1.4, "1.4",
    "assumed: the highest rate over the planned one",
)  # fmt: skip
SLOTS = Input("`max_loras`, set by hand", 64, "64", ASSUMED)
LOCK_SHARE = Input("share of the time for which the write lock may be held", 0.5, "0.5", ASSUMED)
INPUTS = (ZIPF, SPILL, SLOTS, LOCK_SHARE)

ADAPTERS = (10, 1_000, 100_000)
RATES = (100, 1_000, 10_000)


@dataclass(frozen=True, slots=True)
class Case:
    """A base, how many adapters it has, and how many requests come a second."""

    model: Model
    adapters: int
    rate: int

    @property
    def server(self) -> Server:
        return Server(self.model, int(SLOTS.value))

    @property
    def servers(self) -> int:
        return ceil(self.rate / self.server.planned_rate)

    @property
    def fleet(self) -> Fleet:
        each = self.server.running(self.rate / self.servers)
        running = max(self.servers, round(each * self.servers))
        return Fleet(self.servers, running, self.server.places, self.server.slots)


CASES = tuple(Case(model, n, rate) for model in MODELS for n in ADAPTERS for rate in RATES)


@cache
def _shares(adapters: int) -> list[float]:
    return zipf(adapters, ZIPF.value)


@cache
def placed(case: Case, *, by_adapter: bool) -> Figures:
    shares = _shares(case.adapters)
    if by_adapter:
        return affinity(case.fleet, shares, SPILL.value)
    return round_robin(case.fleet, shares)


@dataclass(frozen=True, slots=True)
class Strain:
    """How much of something is asked for, over what there is; above 1 it gives out."""

    what: str
    ratio: float
    lifted_by: str


def standing_still(case: Case, figures: Figures) -> float:
    """Share of the time for which a server's engine loads versions and fills slots."""
    each = case.rate / case.servers
    server = case.server
    return each * (figures.missed * server.load_s + figures.copied * server.copy_s)


def activity(case: Case, figures: Figures) -> Activity:
    return Activity(
        servers=case.servers, adapters=case.adapters, rate=case.rate,
        loads=case.rate * figures.missed, places=case.server.places,
        weights=case.model.adapter_bytes(int(RANK.value)),
    )  # fmt: skip


PLACES = "more places: servers, memory of the host, a lower rank"
GROUPS = "a database for each group of servers"
TOKENS = "tokens of an identity provider in place of keys"
CACHE = "a larger `store_cache_gib`; more places"


def strains(case: Case, figures: Figures) -> list[Strain]:
    """Of all parts but the GPUs, whose number follows from the rate."""
    return [*_of_servers(case, figures), *_of_state(case, activity(case, figures))]


def _of_servers(case: Case, figures: Figures) -> list[Strain]:
    each = case.rate / case.servers
    request_s = ANSWER.value * FRONT_END_S.value
    still = standing_still(case, figures) / (1 - PLANNED.value)
    return [
        Strain("loads and copies", still, PLACES),
        Strain("slots", figures.adapters / case.server.slots, "`max_loras` up to 256"),
        Strain("the API process", each * request_s, "more servers"),
    ]


def _of_state(case: Case, asked: Activity) -> list[Strain]:
    network = NETWORK.value * case.model.gpus
    return [
        Strain("the database's write lock", asked.writing / LOCK_SHARE.value, GROUPS),
        Strain("rows read from the database", asked.rows / ROWS.value, f"{TOKENS}; {GROUPS}"),
        Strain("statements", asked.statements / STATEMENTS.value, GROUPS),
        Strain("connections to the database", asked.connections / MOST_CONNECTIONS.value, GROUPS),
        Strain("requests to the store", asked.gets / GETS.value, CACHE),
        Strain("the network to the store", asked.fetched / network, CACHE),
    ]


def first(case: Case, figures: Figures) -> Strain:
    """What gives out first."""
    most: Callable[[Strain], float] = lambda strain: strain.ratio  # noqa: E731
    return max(strains(case, figures), key=most)
