"""Batches while something fails: the file store, the database, the engine, a line, a key."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import update

from adapters.errors import StoreFailed
from adapters.remote import Remote
from service.batches import keeping, work
from service.batches.parts import Parts
from service.batches.queue import MOST_LOST, Batches
from service.children import Children
from service.database import BatchRow, FileRow
from service.errors import NotReady
from service.files import Files
from service.keys import Keys
from tests.service.batches.asked import create, line, lines_of, until
from tests.service.desk import Desk, StandIn, desk


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "asked")


@pytest.fixture
def served(tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(work, "PAUSE_S", 0.2)
    with desk(tmp_path / "home", stand_in=stand_in) as served:
        yield served


@pytest.fixture
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


def slow(count: int) -> bytes:
    return b"".join(line(f"id-{n}", f"slow {n}") for n in range(count))


def asked(stand_in: StandIn) -> Counter[str]:
    """How often each prompt was."""
    return Counter(said.rsplit(" ", 3)[0] for said in stand_in.asked())


def wait_for(holds: Callable[[], bool], wait_s: float = 20) -> None:
    deadline = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def row(served: Desk, id_: str) -> BatchRow:
    return Batches(served.registry.database).find(id_, "ours")


def change(served: Desk, id_: str, **values: Any) -> None:
    with served.registry.database.write() as session:
        session.execute(update(BatchRow).where(BatchRow.id == id_).values(**values))


def texts(client: openai.OpenAI, batch: Any) -> list[str]:
    return [one["response"]["body"]["text"] for one in lines_of(client, batch.output_file_id)]


def away(*_: Any, **__: Any) -> Any:
    raise StoreFailed("away")


@contextmanager
def hold(stand_in: StandIn) -> Iterator[None]:
    """No batch is begun within."""
    stand_in.dead = True
    time.sleep(0.1)
    yield
    stand_in.dead = False


class TestStores:
    def test_answers_wait_while_the_file_store_is_away(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        batch = create(client, slow(800))
        wait_for(lambda: row(served, batch.id).completed > 0)
        with monkeypatch.context() as patched:
            patched.setattr(Remote, "upload", away)
            before = row(served, batch.id).completed
            wait_for(lambda: len(stand_in.asked()) == 800)
            time.sleep(1.5)
            assert row(served, batch.id).completed <= before + 100
            assert row(served, batch.id).status == "in_progress"
        batch = until(client, batch.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 800)
        assert texts(client, batch) == [str(n) for n in range(800)]
        assert set(asked(stand_in).values()) == {1}

    def test_no_line_is_asked_while_too_much_waits(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(keeping, "MOST_BYTES", 4000)
        monkeypatch.setattr(keeping, "PART_BYTES", 2000)
        with monkeypatch.context() as patched:
            patched.setattr(Parts, "write", away)
            batch = create(client, slow(300))
            wait_for(lambda: len(stand_in.asked()) > 10)
            time.sleep(1)
            assert len(stand_in.asked()) < 60
        batch = until(client, batch.id)
        assert batch.request_counts.completed == 300
        assert set(asked(stand_in).values()) == {1}

    def test_a_failure_while_files_are_joined_is_no_loss(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        join, failures = Parts.join, iter([StoreFailed("away"), OSError(28, "no space")])

        def joins(*given: Any) -> Any:
            if (error := next(failures, None)) is not None:
                raise error
            return join(*given)

        monkeypatch.setattr(Parts, "join", joins)
        batch = create(client, slow(20))
        wait_for(lambda: row(served, batch.id).status == "finalizing")
        wait_for(lambda: row(served, batch.id).server is None)
        assert row(served, batch.id).lost == 0
        batch = until(client, batch.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 20)
        assert next(failures, None) is None
        assert set(asked(stand_in).values()) == {1}

    def test_a_batch_is_not_complete_without_each_line(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        parts, calls = Batches.parts, count()

        def without_the_last(self: Batches, id_: str) -> list[str]:
            keys = parts(self, id_)
            return keys[:-1] if next(calls) == 1 else keys  # as it is joined first

        monkeypatch.setattr(Batches, "parts", without_the_last)
        batch = until(client, create(client, slow(20)).id)
        assert (batch.status, texts(client, batch)) == ("completed", [str(n) for n in range(20)])

    def test_parts_stay_while_the_output_is_not_whole(
        self, client: openai.OpenAI, served: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Files, "is_whole", lambda *_: False)
        batch = until(client, create(client, slow(3)).id)
        assert batch.status == "completed"
        time.sleep(0.3)
        assert len(served.cabinet.files.contents.files(f"batches/{batch.id}")) == 1
        monkeypatch.undo()
        batch = until(client, create(client, slow(3)).id)
        folder = served.registry.home.files / "batches" / batch.id
        wait_for(lambda: not folder.exists())

    def test_a_commit_that_was_not_told_counts_once(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        keep, broke = Batches.keep, list[str]()

        def breaks(
            self: Batches, id_: str, server: str, place: str, *counts: int, moved: bool
        ) -> BatchRow:
            kept = keep(self, id_, server, place, *counts, moved=moved)
            if len(broke) % 2 == 0:
                broke.append(place)
                raise StoreFailed("the connection broke")
            broke.append(place)
            return kept

        monkeypatch.setattr(Batches, "keep", breaks)
        batch = until(client, create(client, slow(150)).id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 150)
        assert texts(client, batch) == [str(n) for n in range(150)]
        assert broke[0::2] == broke[1::2]
        assert len(set(broke)) == len(broke) / 2

    def test_asking_pauses_while_the_lease_can_not_be_renewed(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        batch = create(client, line("id-n", "never") + slow(400))
        wait_for(lambda: row(served, batch.id).completed > 0)
        with monkeypatch.context() as patched:
            patched.setattr(served.registry.database, "write", away)
            wait_for(lambda: stand_in.running == 0, 10)  # the lease is two seconds long
            before = asked(stand_in)
            time.sleep(0.5)
            assert asked(stand_in) == before
            assert row(served, batch.id).completed < len(before)
        wait_for(lambda: row(served, batch.id).completed == 400)
        times = asked(stand_in)
        assert sum(times.values()) <= 401 + 2 * 8  # those in flight
        assert row(served, batch.id).lost == 0
        client.batches.cancel(batch.id)
        batch = until(client, batch.id)
        assert texts(client, batch) == [str(n) for n in range(400)]

    def test_a_lease_is_renewed_while_the_file_store_hangs(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        content, renewed = Files.content, list[float]()

        @contextmanager
        def slowly(self: Files, file: Any) -> Iterator[Path]:
            time.sleep(4)  # twice the lease
            with content(self, file) as place:
                renewed.append(row(served, batch.id).until)
                yield place

        with hold(stand_in):
            batch = create(client, slow(3))
            monkeypatch.setattr(Files, "content", slowly)
        batch = until(client, batch.id)
        assert batch.status == "completed"
        assert len(renewed) == 1  # nobody took it meanwhile
        assert renewed[0] > time.time() - 30


class TestEngine:
    def test_what_the_engine_let_go_of_is_asked_again(
        self, client: openai.OpenAI, stand_in: StandIn
    ) -> None:
        batch = until(client, create(client, line("a", "aborted 1") + line("b", "x 2")).id)
        assert texts(client, batch) == ["1", "2"]
        assert asked(stand_in) == {"aborted 1": 3, "x 2": 1}

    @pytest.mark.parametrize("kills", ["deadly", "fatal"], ids=["at once", "after a while"])
    def test_a_line_that_kills_engines_ends_its_batch(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn, kills: str
    ) -> None:
        before, after = (b"".join(line(f"{a}{n}", f"slow {a}{n}") for n in range(count))
                         for a, count in (("a", 20), ("b", 2000)))  # fmt: skip
        batch = create(client, before + line("d", kills) + after)
        while row(served, batch.id).ended is None:
            wait_for(lambda: stand_in.dead or row(served, batch.id).ended is not None)
            wait_for(lambda: row(served, batch.id).server is None)
            stand_in.dead = False  # it is started again
        batch = until(client, batch.id)
        assert (batch.status, batch.errors.data[0].code) == ("failed", "servers_lost")
        # once more where lines before it were in flight as the engine died for the first time
        assert MOST_LOST <= asked(stand_in)[kills] <= MOST_LOST + 2
        told = texts(client, batch)
        assert {f"a{n}" for n in range(8)} <= set(told)  # not all: some died with it
        assert len(told) == batch.request_counts.completed

    def test_what_can_not_be_read_ends_after_some_tries(
        self, client: openai.OpenAI, served: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = list[str]()

        async def broken(_: Children, module: str, *__: str) -> dict[str, Any]:
            tries.append(module)
            raise NotReady("the work ended with -9", code="child_failed")

        monkeypatch.setattr(Children, "run", broken)
        monkeypatch.setattr(work, "IN_PROCESS_BYTES", 0)
        batch = until(client, create(client, slow(3)).id)
        assert (batch.status, batch.errors.data[0].code) == ("failed", "child_failed")
        assert tries == ["service.batches.lines"] * MOST_LOST

    def test_whatever_fails_batches_go_on(
        self, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lease, failures = Batches.lease, iter([RuntimeError("a bug"), KeyError("another")])

        def fails(*given: Any) -> Any:
            if (error := next(failures, None)) is not None:
                raise error
            return lease(*given)

        monkeypatch.setattr(Batches, "lease", fails)
        assert until(client, create(client, slow(3)).id).status == "completed"


class TestLines:
    def test_a_lone_surrogate_is_one_lines_error(self, client: openai.OpenAI) -> None:
        content = line("a", "x 1") + line("\ud800", "x \ud800") + line("c", "x 3")
        batch = until(client, create(client, content).id)
        assert batch.status == "completed"
        assert texts(client, batch) == ["1", "3"]
        (error,) = lines_of(client, batch.error_file_id)
        assert (error["custom_id"], error["response"]["status_code"]) == ("\ud800", 500)

    def test_whatever_fails_with_a_line_is_that_lines_error(self, client: openai.OpenAI) -> None:
        content = line("a", "x 1") + line("b", "unreadable") + line("c", "x 3")
        batch = until(client, create(client, content).id)
        assert texts(client, batch) == ["1", "3"]
        (error,) = lines_of(client, batch.error_file_id)
        assert (error["custom_id"], error["error"]["code"]) == ("b", "line_failed")
        assert error["error"]["line"] == 2

    def test_an_input_that_expires_is_worked_on(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn
    ) -> None:
        with hold(stand_in):
            batch = create(client, slow(5))
            with served.registry.database.write() as session:
                session.execute(update(FileRow).values(expires=datetime.now(UTC)))
        batch = until(client, batch.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 5)

    def test_a_batch_that_expired_ends_also_without_its_file(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn
    ) -> None:
        with hold(stand_in):
            batch = create(client, slow(5))
            (served.registry.home.files / batch.input_file_id).unlink()
            change(served, batch.id, expires=datetime.now(UTC) - timedelta(hours=2))
        batch = until(client, batch.id)
        assert (batch.status, batch.error_file_id) == ("expired", None)

    def test_lines_that_expired_are_counted_as_failed(
        self, client: openai.OpenAI, served: Desk, stand_in: StandIn
    ) -> None:
        with hold(stand_in):
            batch = create(client, slow(5))
            change(served, batch.id, expires=datetime.now(UTC))
        batch = until(client, batch.id)
        assert batch.status == "expired"
        assert batch.request_counts.model_dump() == {"total": 5, "completed": 0, "failed": 5}
        assert len(lines_of(client, batch.error_file_id)) == 5

    def test_what_nobody_began_is_cancelled_at_once(
        self, client: openai.OpenAI, stand_in: StandIn
    ) -> None:
        with hold(stand_in):
            batch = create(client, slow(5))
            assert client.batches.cancel(batch.id).status == "cancelled"
        time.sleep(0.7)
        assert stand_in.asked() == []

    def test_parts_are_joined_also_when_the_batch_fails(
        self, client: openai.OpenAI, served: Desk
    ) -> None:
        batch = create(client, slow(40) + line("n", "never"))
        wait_for(lambda: row(served, batch.id).completed == 40)
        change(served, batch.id, server=None, until=0.0, lost=MOST_LOST)  # as if they had died
        batch = until(client, batch.id)
        assert (batch.status, batch.errors.data[0].code) == ("failed", "servers_lost")
        assert texts(client, batch) == [str(n) for n in range(40)]


def test_a_batch_of_a_revoked_key_fails_with_what_was_answered(
    client: openai.OpenAI, served: Desk, stand_in: StandIn
) -> None:
    keys = Keys(served.registry.database)
    batch = create(client, slow(10) + line("n", "never"))
    wait_for(lambda: row(served, batch.id).completed == 10)
    other = create(client, slow(10) + line("n", "never"))
    (key,) = keys.all("ours")
    keys.revoke(key.id)
    for id_ in (batch.id, other.id):
        ended = until(client, id_)
        assert (ended.status, ended.errors.data[0].code) == ("failed", "key_revoked")
        assert ended.request_counts.completed <= 10
    assert len(texts(client, until(client, batch.id))) == 10
    wait_for(lambda: stand_in.running == 0)


def test_who_asks_meanwhile_gets_the_places_of_lines(
    client: openai.OpenAI, served: Desk, stand_in: StandIn
) -> None:
    batch = create(client, b"".join(line(f"n{n}", f"never {n}") for n in range(8)))
    wait_for(lambda: stand_in.running == 8)
    with served.http() as http, ThreadPoolExecutor() as pool:
        asking = pool.submit(http.post, "/v1/generate", json={"prompt": "slow own"})
        wait_for(lambda: stand_in.running == 3)  # two lines beside it
        assert asking.result().json()["text"] == "own"
        wait_for(lambda: stand_in.running == 8)  # it is quiet again
    times = asked(stand_in)
    assert times.pop("slow own") == 1
    assert sum(times.values()) == 8 + 6
    client.batches.cancel(batch.id)
    until(client, batch.id)
    assert stand_in.running == 0


def test_a_project_leaves_places_to_others(client: openai.OpenAI, served: Desk) -> None:
    mine = [create(client, line("n", "never")).id for _ in range(6)]
    wait_for(lambda: sum(row(served, id_).server is not None for id_ in mine) == 4)
    time.sleep(1)
    assert sum(row(served, id_).server is not None for id_ in mine) == 4
    theirs = served.openai("theirs")
    assert until(theirs, create(theirs, line("a", "x 1")).id).status == "completed"
    for id_ in mine:
        client.batches.cancel(id_)
    assert {until(client, id_).status for id_ in mine} == {"cancelled"}
