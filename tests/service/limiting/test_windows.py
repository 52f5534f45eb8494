"""Windows of a minute on both databases: exact for all servers, places that come back."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from adapters.connect import for_counts
from adapters.errors import StoreFailed
from adapters.registry import Registry
from service.limiting.limits import Limits
from service.limiting.standing import WINDOW_S, Outcome
from service.limiting.windows import HOLD_S, Subject, Take, Windows, in_memory
from tests.postgres import Postgres

PROCESSES = multiprocessing.get_context("forkserver")  # starts them in milliseconds
PROCESSES.set_forkserver_preload([__name__])
NUMBERS = count()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine(registry: Registry) -> Iterator[Engine]:
    engine = for_counts(registry.database.engine.url)
    yield engine
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def windows(engine: Engine, clock: Clock) -> Windows:
    return Windows(engine, "here", clock)


def asked(limits: Limits, name: str = "key k", tokens: int = 0, **more: Limits) -> Take:
    subjects = [Subject(name, limits), *(Subject(f"of {n}", own) for n, own in more.items())]
    return Take(f"request-{next(NUMBERS)}", "team", tuple(subjects), tokens)


def take_all(windows: Windows, number: int, limits: Limits, **more: Any) -> list[Outcome]:
    outcomes = [windows.take(asked(limits, **more)) for _ in range(number)]
    return [outcome for outcome in outcomes if outcome.admitted]


def test_as_many_as_the_limit_says_begin_in_a_minute(windows: Windows, clock: Clock) -> None:
    limits = Limits(requests_per_minute=5)
    assert len(take_all(windows, 9, limits)) == 5
    clock.now += WINDOW_S - 0.5
    assert take_all(windows, 9, limits) == []
    clock.now += 1.5
    assert len(take_all(windows, 9, limits)) == 5


def test_what_was_used_comes_back_bit_by_bit(windows: Windows, clock: Clock) -> None:
    limits = Limits(requests_per_minute=4)
    for _ in range(4):
        assert windows.take(asked(limits)).admitted
        clock.now += 10
    outcome = windows.take(asked(limits))
    assert not outcome.admitted
    assert outcome.excess().wait_s == pytest.approx(21)
    clock.now += 21
    assert len(take_all(windows, 3, limits)) == 1


def test_a_refusal_counts_nothing_for_anybody(windows: Windows) -> None:
    key, project = Limits(requests_per_minute=9), Limits(requests_per_minute=2)
    assert len(take_all(windows, 5, key, project=project)) == 2
    outcome = windows.take(asked(key))
    assert [len(one.uses) and one.uses[0].requests for one in outcome.seen] == [3]
    assert outcome.admitted


def test_keys_share_what_their_project_may(windows: Windows) -> None:
    key, project = Limits(requests_per_minute=4), Limits(requests_per_minute=6)
    admitted = [take_all(windows, 9, key, name=f"key {n}", project=project) for n in range(3)]
    assert [len(outcomes) for outcomes in admitted] == [4, 2, 0]


def test_tokens_are_reserved_then_settled(windows: Windows) -> None:
    limits = Limits(tokens_per_minute=100)
    first = asked(limits, tokens=70)
    outcome = windows.take(first)
    assert not windows.take(asked(limits, tokens=31)).admitted
    windows.settle(first, outcome, 20)
    second = asked(limits, tokens=80)
    assert windows.take(second).admitted
    refused = windows.take(asked(limits, tokens=1))
    assert refused.excess()[1:4] == ("tokens in a minute", 100, 100)


def test_more_tokens_than_reserved_hold_the_next_up(windows: Windows, clock: Clock) -> None:
    limits = Limits(tokens_per_minute=100)
    first = asked(limits, tokens=10)
    windows.settle(first, windows.take(first), 250)
    assert not windows.take(asked(limits, tokens=1)).admitted
    clock.now += WINDOW_S + 1
    assert windows.take(asked(limits, tokens=1)).admitted


def test_a_request_that_may_use_more_than_a_minutes_tokens_begins_alone(
    windows: Windows, clock: Clock
) -> None:
    limits = Limits(tokens_per_minute=100)
    assert windows.take(asked(limits, tokens=1)).admitted
    assert not windows.take(asked(limits, tokens=5000)).admitted
    clock.now += WINDOW_S + 1
    assert windows.take(asked(limits, tokens=5000)).admitted
    assert not windows.take(asked(limits, tokens=1)).admitted


def test_what_is_asked_again_does_not_count(windows: Windows) -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=10)
    first = asked(limits, tokens=10)
    outcome = windows.take(first)
    windows.settle(first, outcome, 0, counts=False)
    assert windows.take(asked(limits, tokens=10)).admitted


def test_a_place_is_free_again_when_its_request_ends(windows: Windows) -> None:
    limits = Limits(concurrent=2)
    first, second = asked(limits), asked(limits)
    outcomes = windows.take(first), windows.take(second)
    refused = windows.take(asked(limits))
    assert refused.excess()[1:] == ("requests at once", 2, 2, 1.0)
    windows.settle(second, outcomes[1], 0)
    assert len(take_all(windows, 3, limits)) == 1


def test_places_of_a_server_that_was_killed_come_back_and_those_of_others_stay(
    engine: Engine, clock: Clock
) -> None:
    here, killed = Windows(engine, "here", clock), Windows(engine, "killed", clock)
    limits = Limits(concurrent=2)
    assert here.take(asked(limits)).admitted
    assert killed.take(asked(limits)).admitted
    for _ in range(4):
        clock.now += HOLD_S / 3
        here.renew()
    assert len(take_all(here, 2, limits)) == 1
    here.leave()
    assert len(take_all(killed, 3, limits)) == 2


def test_what_counts_no_more_is_swept(windows: Windows, clock: Clock, engine: Engine) -> None:
    limits = Limits(requests_per_minute=9, concurrent=9)

    def rows() -> list[int]:
        with engine.connect() as connection:
            tables = ("limit_uses", "limit_holds")
            return [
                int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)
                for table in tables
            ]

    take_all(windows, 3, limits)
    clock.now += 3 * WINDOW_S
    take_all(windows, 1, limits)
    windows.sweep()
    assert rows() == [1, 1]


def test_names_are_values_and_no_sql(windows: Windows) -> None:
    limits = Limits(requests_per_minute=1)
    for name in ("key x'); DELETE FROM limit_uses; --", "key %(now)s", "key :now", 'key "'):
        assert len(take_all(windows, 3, limits, name=name)) == 1


# every sequence of requests is let in as by a list of all that was used

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 1), st.integers(0, 12)),
        st.tuples(st.just("end"), st.integers(0, 5), st.integers(0, 14)),
        st.tuples(st.just("wait"), st.sampled_from([0.2, 1.0, 7.3, 29.9, 60.0, 61.0])),
    ),
    min_size=10, max_size=60,
)  # fmt: skip
LIMIT = st.one_of(st.none(), st.integers(1, 6))
LIMITS = st.builds(Limits, LIMIT, st.one_of(st.none(), st.integers(1, 25)), LIMIT)


class Model:
    """All that was used, in a list."""

    def __init__(self, limits: dict[str, Limits]) -> None:
        self.limits = limits
        self.uses: list[dict[str, Any]] = []

    def take(self, subjects: list[str], tokens: int, now: float) -> dict[str, Any] | None:
        use: dict[str, Any] = {"at": now, "running": True, "tokens": {}, "subjects": subjects}
        for name in subjects:
            limits = self.limits[name]
            mine = [one for one in self.uses if name in one["subjects"]]
            recent = [one for one in mine if int(one["at"]) >= int(now) - WINDOW_S]
            most = limits.tokens_per_minute
            use["tokens"][name] = 0 if most is None else min(tokens, most)
            used = sum(one["tokens"][name] for one in recent)
            running = sum(one["running"] for one in mine if one["at"] > now - HOLD_S)
            most_requests = limits.requests_per_minute
            if most_requests is not None and len(recent) >= most_requests:
                return None
            if most is not None and used + use["tokens"][name] > most:
                return None
            if limits.concurrent is not None and running >= limits.concurrent:
                return None
        self.uses.append(use)
        return use


def check(make: Callable[[Clock], Windows], key: Limits, project: Limits, steps: Any) -> None:
    clock, run = Clock(), next(NUMBERS)
    windows = make(clock)
    limits = {f"key {run}": key, f"key {run}b": key, f"project {run}": project}
    model, open_ = Model(limits), list[tuple[Take, Outcome, dict[str, Any]]]()
    for step in steps:
        if step[0] == "wait":
            clock.now += step[1]
        elif step[0] == "take":
            names = [list(limits)[step[1]], f"project {run}"]
            subjects = tuple(Subject(name, limits[name]) for name in names)
            request = Take(f"request-{next(NUMBERS)}", f"team {run}", subjects, step[2])
            outcome, use = windows.take(request), model.take(names, step[2], clock.now)
            assert outcome.admitted == (use is not None)
            if use is not None:
                open_.append((request, outcome, use))
            else:
                assert 0 <= outcome.excess().wait_s <= WINDOW_S + 1
                assert outcome.excess().limit > 0
        elif step[1] < len(open_):
            request, outcome, use = open_.pop(step[1])
            windows.settle(request, outcome, step[2])
            use["running"], use["tokens"] = False, dict.fromkeys(use["tokens"], step[2])
    for begin in {use["at"] for use in model.uses}:
        for name, own in limits.items():
            within = [
                use for use in model.uses
                if name in use["subjects"] and begin <= use["at"] < begin + WINDOW_S
            ]  # fmt: skip
            assert own.requests_per_minute is None or len(within) <= own.requests_per_minute


@settings(max_examples=150)
@given(key=LIMITS, project=LIMITS, steps=STEPS)
def test_it_lets_in_what_a_list_of_all_uses_would(key: Limits, project: Limits, steps: Any) -> None:
    engine = in_memory()
    check(lambda clock: Windows(engine, "here", clock), key, project, steps)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=LIMITS, project=LIMITS, steps=STEPS)
def test_it_does_so_on_both_databases(
    engine: Engine, key: Limits, project: Limits, steps: Any
) -> None:
    check(lambda clock: Windows(engine, "here", clock), key, project, steps)


# several servers

LIMIT_OF_MANY, ASKED_BY_EACH = Limits(requests_per_minute=100), 500


def ask_many(url: Any, here: Connection) -> None:
    """In a process of its own: tells how many of its requests began."""
    windows = Windows(for_counts(url), f"server-{os.getpid()}")
    here.send("ready")
    here.recv()

    def one(_: int) -> bool:
        key = Subject("key k", LIMIT_OF_MANY)
        project = Subject("project team", Limits(requests_per_minute=1000))
        request = Take(f"{os.getpid()}-{next(NUMBERS)}", "team", (key, project))
        return windows.take(request).admitted

    with ThreadPoolExecutor(4) as threads:
        here.send(sum(threads.map(one, range(ASKED_BY_EACH))))


def test_of_1000_requests_over_two_processes_exactly_100_pass(registry: Registry) -> None:
    ends, processes = [], []
    for _ in range(2):
        here, there = PROCESSES.Pipe()
        url = registry.database.engine.url
        processes.append(PROCESSES.Process(target=ask_many, args=(url, there)))
        ends.append(here)
        processes[-1].start()
    assert [end.recv() for end in ends] == ["ready"] * 2
    for end in ends:
        end.send("go")
    passed = [end.recv() for end in ends]
    for process in processes:
        process.join()
    assert sum(passed) == LIMIT_OF_MANY.requests_per_minute


def test_a_database_that_comes_back_is_used_again(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", postgres.ready())
    windows = Windows(for_counts(Registry.open(tmp_path).database.engine.url), "here")
    limits = Limits(requests_per_minute=3)
    with ThreadPoolExecutor(4) as threads:  # so that several connections are open
        list(threads.map(lambda _: windows.take(asked(Limits(concurrent=9), "key o")), range(8)))
    assert len(take_all(windows, 2, limits)) == 2
    postgres.kill()
    try:
        with pytest.raises(StoreFailed, match="can't be used"):
            windows.take(asked(limits))
    finally:
        postgres.start()
    assert 1 <= len(take_all(windows, 4, limits)) <= 3  # the last counts may be lost with it
