"""Room that a server takes ahead: never more than the limits say, and given back."""

import threading
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from service.limiting.ahead import FORGET_S, IDLE_S, MOST, SHARE, Ahead
from service.limiting.limits import Limits
from service.limiting.standing import WINDOW_S, Outcome
from service.limiting.windows import Subject, Take, Windows, in_memory

MANY = Limits(requests_per_minute=SHARE * 1000, tokens_per_minute=10**9, concurrent=10**6)
NUMBERS = count()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.2

    def __call__(self) -> float:
        return self.now


class Server:
    """What the limiter does with a stock, without threads; counts what it asks the database."""

    def __init__(self, engine: Engine, clock: Clock, name: str = "here") -> None:
        self.windows, self.ahead, self.clock = Windows(engine, name, clock), Ahead(clock), clock
        self.asked = 0

    def take(self, subjects: tuple[Subject, ...], tokens: int = 0) -> Any:
        asked = Take(f"request-{next(NUMBERS)}", "team", subjects, tokens)
        if (found := self.ahead.take(asked)) is not None:
            return (*found, True)
        several = replace(asked, count=self.ahead.wanted(asked))
        outcome = self._ask(several)
        if not outcome.admitted:
            returned = self.ahead.give_up(subjects)
            self.windows.give_back(returned)
            if returned or several.count > 1:
                several = asked
                outcome = self._ask(asked)
        self.ahead.put(several, outcome, self.clock())
        return asked, outcome, several.count > 1

    def _ask(self, asked: Take) -> Outcome:
        self.asked += 1
        return self.windows.take(asked)

    def end(self, taken: Any, tokens: int = 0, *, counts: bool = True) -> None:
        asked, outcome, ahead = taken
        if ahead:
            self.ahead.settle(asked, outcome.second, tokens, counts=counts)
        else:
            self.windows.settle(asked, outcome, tokens, counts=counts)

    def sweep(self) -> None:
        self.windows.give_back(self.ahead.sweep())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine() -> Engine:
    return in_memory()


def subjects_of(limits: Limits) -> tuple[Subject, ...]:
    return Subject("key k", limits), Subject("project team", limits)


def sums(engine: Engine) -> set[tuple[int, int]]:
    """Requests and tokens of each subject."""
    query = "SELECT sum(requests), sum(tokens) FROM limit_uses GROUP BY subject"
    with engine.connect() as connection:
        return {(int(row[0]), int(row[1])) for row in connection.execute(text(query))}


def holds(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM limit_holds")).scalar_one())


def test_far_from_a_limit_most_requests_do_not_ask_the_database(
    engine: Engine, clock: Clock
) -> None:
    server = Server(engine, clock)
    for _ in range(200):
        taken = server.take(subjects_of(MANY), tokens=100)
        assert taken[1].admitted
        server.end(taken, 50)

    assert server.asked <= 2 + 200 // MOST + 1
    clock.now += 3
    server.sweep()
    assert sums(engine) == {(200, 200 * 50)}
    assert holds(engine) == 0


@pytest.mark.parametrize("limit", [3, SHARE - 1, 5 * SHARE, 40 * SHARE + 7])
def test_one_server_lets_in_exactly_what_the_limit_says(
    engine: Engine, clock: Clock, limit: int
) -> None:
    server, subjects = Server(engine, clock), subjects_of(Limits(requests_per_minute=limit))
    taken = [server.take(subjects) for _ in range(limit + 50)]

    assert [one[1].admitted for one in taken] == [True] * limit + [False] * 50


def test_all_places_can_be_used_and_come_back(engine: Engine, clock: Clock) -> None:
    server, subjects = Server(engine, clock), subjects_of(Limits(concurrent=100))
    for _ in range(3):
        taken = [server.take(subjects) for _ in range(101)]
        assert [one[1].admitted for one in taken] == [True] * 100 + [False]
        for one in taken[:100]:
            server.end(one)
        clock.now += 0.4

    clock.now += IDLE_S
    server.sweep()
    assert holds(engine) == 0


def test_what_is_ahead_is_for_its_second_alone(engine: Engine, clock: Clock) -> None:
    server, subjects = Server(engine, clock), subjects_of(MANY)
    server.take(subjects)
    server.take(subjects)
    assert server.ahead.take(Take("x", "team", subjects)) is not None
    clock.now = 1_000_001.0

    assert server.ahead.take(Take("x", "team", subjects)) is None


def test_who_would_be_refused_gets_what_his_server_holds_ahead(
    engine: Engine, clock: Clock
) -> None:
    """Tokens that were reserved for small requests, and that a large one needs."""
    limits = Limits(tokens_per_minute=64_000)
    server, subjects = Server(engine, clock), subjects_of(limits)
    for _ in range(2):
        server.take(subjects, tokens=100)
    left = 64_000 - 2 * 100

    assert not server.take(subjects, tokens=left + 1)[1].admitted
    assert server.take(subjects, tokens=left)[1].admitted


def test_a_caller_is_told_what_is_left_without_what_is_ahead(engine: Engine, clock: Clock) -> None:
    server, subjects = Server(engine, clock), subjects_of(MANY)
    told = []
    for _ in range(MOST + 5):
        headers = dict(server.take(subjects, tokens=10)[1].headers())
        told.append(int(headers["x-ratelimit-remaining-requests"]))
        assert headers["x-ratelimit-limit-tokens"] == str(10**9)

    most = SHARE * 1000
    # those that ask the database are told what it has, with all that was taken ahead
    assert sum(left != most - 1 - number for number, left in enumerate(told)) <= server.asked


def test_what_is_asked_again_is_no_request(engine: Engine, clock: Clock) -> None:
    server, subjects = Server(engine, clock), subjects_of(MANY)
    for _ in range(4):
        server.end(server.take(subjects, tokens=10), 0, counts=False)
    clock.now += 2
    server.sweep()

    assert sums(engine) == {(0, 0)}


def test_a_request_may_outlast_what_is_remembered_of_its_caller(
    engine: Engine, clock: Clock
) -> None:
    server, subjects = Server(engine, clock), subjects_of(MANY)
    taken = [server.take(subjects, tokens=10) for _ in range(3)]
    clock.now += FORGET_S + 5
    server.sweep()
    for one in taken:
        server.end(one, 30)
    server.end(server.take(subjects, tokens=10), 30)
    clock.now += 2
    server.sweep()

    assert sums(engine) == {(4, 120)}
    assert holds(engine) == 0


def test_a_server_that_ends_leaves_nothing_behind(engine: Engine, clock: Clock) -> None:
    server, subjects = Server(engine, clock), subjects_of(MANY)
    for _ in range(5):
        server.end(server.take(subjects, tokens=10), 7)
    server.windows.give_back(server.ahead.sweep(last=True))

    assert sums(engine) == {(5, 35)}
    assert holds(engine) == 0


def test_a_limit_that_changes_begins_anew(engine: Engine, clock: Clock) -> None:
    server = Server(engine, clock)
    for _ in range(3):
        server.take(subjects_of(MANY))
    few = subjects_of(Limits(requests_per_minute=2))

    assert server.ahead.take(Take("x", "team", few)) is None


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "end", "wait", "sweep"]), st.integers(0, 1),
        st.integers(0, 30),
    ),
    max_size=200,
)  # fmt: skip


@settings(max_examples=60)
@given(ACTS, st.integers(1, 300), st.integers(1, 4000), st.integers(1, 60))
def test_two_servers_never_let_in_more_than_the_limits_say(
    acts: list[tuple[str, int, int]], requests: int, tokens: int, places: int
) -> None:
    engine, clock = in_memory(), Clock()
    servers = [Server(engine, clock, name) for name in ("a", "b")]
    let_in = play(acts, servers, subjects_of(Limits(requests, tokens, places)), places)
    for end, _ in let_in:
        within = [used for at, used in let_in if end - WINDOW_S < at <= end]
        assert len(within) <= requests
        assert sum(within) <= tokens

    clock.now += 2
    for server in servers:
        server.sweep()
    assert holds(engine) == 0
    if let_in:
        assert sums(engine) == {(len(let_in), sum(used for _, used in let_in))}


def play(
    acts: list[tuple[str, int, int]],
    servers: list[Server],
    subjects: tuple[Subject, ...],
    places: int,
) -> list[tuple[float, int]]:
    """When requests were let in and the tokens of each; all have ended then."""
    clock = servers[0].clock
    running: list[tuple[Server, Any, int]] = []
    let_in: list[tuple[float, int]] = []
    for act, which, number in acts:
        if act == "take":
            most = subjects[0].limits.tokens_per_minute or 0
            taken = servers[which].take(subjects, min(number, most))
            if taken[1].admitted:
                running.append((servers[which], taken, min(number, most)))
                let_in.append((clock.now, min(number, most)))
        elif act == "end" and running:
            by, taken, used = running.pop(number % len(running))
            by.end(taken, used)
        elif act == "wait":
            clock.now += number / 20
        else:
            servers[which].sweep()
        assert len(running) <= places
    for by, taken, used in running:
        by.end(taken, used)
    return let_in


def test_threads_share_a_stock(engine: Engine, clock: Clock) -> None:
    server, subjects = Server(engine, clock), subjects_of(MANY)
    for _ in range(2):
        server.take(subjects)
    admitted: list[Any] = []

    def take() -> None:
        while (found := server.ahead.take(Take("x", "team", subjects))) is not None:
            admitted.append(found[0].request)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(admitted)) == len(admitted) == MOST - 1
