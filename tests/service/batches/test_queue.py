"""Batches in the database: of two servers one has a batch, and no line is counted twice."""

import time
from pathlib import Path
from typing import Any

import pytest

from adapters.connect import Database
from adapters.registry import Registry
from service.batches import queue
from service.batches.queue import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    FINALIZING,
    IN_PROGRESS,
    VALIDATING,
    Batches,
    LeaseLost,
    NewBatch,
    Outcome,
    uses_file,
    window_of,
)
from service.database import BatchRow
from service.errors import BadRequest, BatchNotFound


@pytest.fixture
def batches(tmp_path: Path, database: str) -> Batches:
    return Batches(Registry.open(tmp_path).database)


def new(project: str = "ours", **more: Any) -> NewBatch:
    given = {
        "project": project, "caller": "key_1", "endpoint": "/v1/generate", "input_file": "file-a",
        "window": "24h", "output_expires_after_s": None, "metadata": None,
    } | more  # fmt: skip
    return NewBatch(**given)


def leased(batches: Batches, server: str) -> BatchRow:
    row = batches.lease(server)
    assert row is not None
    return row


def test_a_batch_goes_its_way(batches: Batches) -> None:
    batch = batches.create(new(metadata={"a": "b"}))
    assert batch.status == VALIDATING
    assert leased(batches, "s").id == batch.id
    assert batches.lease("other") is None
    assert not batches.waiting()
    assert batches.begin(batch.id, "s", 9).status == IN_PROGRESS
    assert batches.keep(batch.id, "s", "k1", 3, 1, moved=True).completed == 3
    kept = batches.keep(batch.id, "s", "k2", 4, 1, moved=True)
    assert (kept.completed, kept.failed, kept.total) == (7, 2, 9)
    assert batches.parts(batch.id) == ["k1", "k2"]
    assert batches.finalize(batch.id, "s").status == FINALIZING
    batches.end(batch.id, "s", Outcome(COMPLETED, "file-o", "file-e"))
    found = batches.find(batch.id, "ours")
    assert (found.status, found.output_file, found.error_file) == (COMPLETED, "file-o", "file-e")
    assert (found.labels, found.server, batches.parts(batch.id)) == ({"a": "b"}, None, [])
    assert batches.lease("s") is None


def test_a_dead_servers_batch_goes_to_another(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batches.create(new())
    leased(batches, "dead")
    batches.begin(batch.id, "dead", 5)
    batches.keep(batch.id, "dead", "k1", 2, 0, moved=True)
    later = time.time() + queue.LEASE_S + 1
    monkeypatch.setattr(Database, "now", lambda *_: later)
    assert batches.waiting()
    again = leased(batches, "s")
    assert (again.status, again.completed, again.lost) == (IN_PROGRESS, 2, 1)
    with pytest.raises(LeaseLost):
        batches.keep(batch.id, "dead", "k2", 1, 0, moved=True)
    with pytest.raises(LeaseLost):
        batches.end(batch.id, "dead", Outcome(COMPLETED))
    assert batches.find(batch.id, "ours").completed == 2
    assert batches.keep(batch.id, "s", "k2", 1, 0, moved=False).lost == 1
    assert batches.keep(batch.id, "s", "k3", 1, 0, moved=True).lost == 0
    batches.give_back(batch.id, "s")
    assert leased(batches, "third").lost == 0


def test_a_server_takes_no_batch_that_it_is_at(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batches.create(new())
    leased(batches, "s")
    later = time.time() + queue.LEASE_S + 1
    monkeypatch.setattr(Database, "now", lambda *_: later)
    assert batches.lease("s", [batch.id]) is None
    assert batches.renew(batch.id, "s").lost == 0


def test_the_project_with_the_fewest_comes_next(batches: Batches) -> None:
    mine = [batches.create(new()).id for _ in range(2)]
    theirs = batches.create(new("theirs")).id
    assert [leased(batches, "s").id for _ in range(3)] == [mine[0], theirs, mine[1]]


def test_cancel(batches: Batches) -> None:
    batch = batches.create(new())
    leased(batches, "s")
    assert batches.cancel(batch.id, "ours").status == CANCELLING
    first = batches.find(batch.id, "ours").cancelling
    assert batches.cancel(batch.id, "ours").cancelling == first
    assert batches.begin(batch.id, "s", 1).status == CANCELLING
    assert batches.finalize(batch.id, "s").status == CANCELLING
    batches.end(batch.id, "s", Outcome(CANCELLED))
    with pytest.raises(BadRequest, match="is cancelled and can't be cancelled") as error:
        batches.cancel(batch.id, "ours")
    assert error.value.code == "wrong_status"


def test_a_batch_that_nobody_began_is_cancelled_at_once(batches: Batches) -> None:
    waits, begun, paused = (batches.create(new()).id for _ in range(3))
    assert batches.cancel(waits, "ours").status == CANCELLED
    assert batches.lease("s", [paused]) is not None
    batches.keep(begun, "s", "k1", 1, 0, moved=True)
    batches.give_back(begun, "s")
    assert batches.cancel(begun, "ours").status == CANCELLING  # its answers have to be joined
    assert batches.lease("s", [begun]) is not None
    batches.give_back(paused, "s", pause_s=60)
    cancelled = batches.cancel(paused, "ours")
    assert (cancelled.status, cancelled.cancelling) == (CANCELLED, cancelled.ended)


def test_a_cancel_that_comes_while_files_are_joined_counts(batches: Batches) -> None:
    batch = batches.create(new())
    leased(batches, "s")
    batches.begin(batch.id, "s", 1)
    assert batches.finalize(batch.id, "s").status == FINALIZING
    assert batches.cancel(batch.id, "ours").status == CANCELLING
    assert batches.end(batch.id, "s", Outcome(COMPLETED, "file-o")) == CANCELLED
    found = batches.find(batch.id, "ours")
    assert (found.status, found.output_file) == (CANCELLED, "file-o")


def test_a_part_is_counted_once(batches: Batches) -> None:
    batch = batches.create(new())
    leased(batches, "s")
    for _ in range(2):  # the first commit was not told
        assert batches.keep(batch.id, "s", "k1", 3, 1, moved=True).completed == 3
    assert batches.keep(batch.id, "s", "k2", 1, 0, moved=True).completed == 4
    assert batches.parts(batch.id) == ["k1", "k2"]


def test_what_is_given_back_counts_as_lost_when_told_so(batches: Batches) -> None:
    batch = batches.create(new())
    for lost in (False, True):
        leased(batches, "s")
        batches.give_back(batch.id, "s", lost=lost)
    assert leased(batches, "s").lost == 1
    batches.give_back(batch.id, "s", pause_s=60)
    assert not batches.waiting()
    assert batches.lease("s") is None


def test_a_project_that_is_served_waits_for_others(batches: Batches) -> None:
    batches.create(new())
    assert not batches.waiting(["ours"])
    assert batches.lease("s", [], ["ours"]) is None
    theirs = batches.create(new("theirs")).id
    assert batches.waiting(["ours"])
    row = batches.lease("s", [], ["ours"])
    assert row is not None
    assert row.id == theirs


def test_lines_that_expired_are_counted(batches: Batches) -> None:
    batch = batches.create(new())
    leased(batches, "s")
    batches.begin(batch.id, "s", 5)
    batches.keep(batch.id, "s", "k1", 2, 1, moved=True)
    batches.end(batch.id, "s", Outcome(EXPIRED, expired=2))
    found = batches.find(batch.id, "ours")
    assert (found.total, found.completed, found.failed) == (5, 2, 3)


def test_other_projects_see_nothing(batches: Batches) -> None:
    batch = batches.create(new())
    for ask in (batches.find, batches.cancel):
        with pytest.raises(BatchNotFound):
            ask(batch.id, "theirs")
    assert batches.page("theirs", after=None, limit=5) == ([], False)


def test_pages(batches: Batches) -> None:
    ids = [batches.create(new()).id for _ in range(5)][::-1]
    rows, more = batches.page("ours", after=None, limit=2)
    assert ([row.id for row in rows], more) == (ids[:2], True)
    rows, more = batches.page("ours", after=ids[1], limit=3)
    assert ([row.id for row in rows], more) == (ids[2:], False)
    with pytest.raises(BadRequest, match="after"):
        batches.page("ours", after="batch_none", limit=3)


def test_a_file_is_used_until_the_batch_has_ended(batches: Batches) -> None:
    batch = batches.create(new())
    with batches._database.read() as session:
        assert uses_file(session, "file-a") == f"batch {batch.id}"
        assert uses_file(session, "file-b") is None
    leased(batches, "s")
    batches.end(batch.id, "s", Outcome(CANCELLED))
    with batches._database.read() as session:
        assert uses_file(session, "file-a") is None


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("1m", 60), ("7d", 604800)])
def test_windows(text: str, seconds: int) -> None:
    assert window_of(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "h", "0h", "24", "24H", "8d", "-1h", "1.5h", "24h\n", "１h"])
def test_no_windows(text: str) -> None:
    with pytest.raises(BadRequest) as error:
        window_of(text)
    assert error.value.param == "completion_window"
