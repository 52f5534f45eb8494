"""Leases are kept whatever their worker is at; what is not kept is left alone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import StoreFailed
from adapters.registry import Registry
from service.jobs import leases
from service.jobs.leases import Leases
from service.jobs.queue import Jobs
from service.jobs.states import Outcome
from tests.service.jobs.stage import Stage, order


@pytest.fixture
def jobs(tmp_path: Path, database: str) -> Jobs:
    return Jobs(Registry.open(tmp_path).database, lease_s=0.6)


@pytest.fixture
def held(jobs: Jobs) -> Iterator[Leases]:
    held = Leases(jobs, "w")
    yield held
    held.close()


def taken(jobs: Jobs, held: Leases) -> leases.Lease:
    job = jobs.create(order())
    began = time.monotonic()
    assert jobs.lease("w", job.id) is not None
    return held.hold(job.id, began)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lease_lasts_while_its_worker_is_at_something_else(jobs: Jobs, held: Leases) -> None:
    jobs.lease_s = 2.0  # a busy machine may stand still for some tenths
    lease = taken(jobs, held)
    held.start()
    time.sleep(2.2 * jobs.lease_s)  # without a sign by the worker itself
    jobs.put_back_late()
    assert jobs.find(lease.job, "ours").worker == "w"
    assert not lease.gone
    held.let_go(lease.job)
    time.sleep(1.2 * jobs.lease_s)
    jobs.put_back_late()
    assert jobs.find(lease.job, "ours").worker is None


def test_what_the_caller_wants_and_when_the_job_ends_go_by_the_lease(
    jobs: Jobs, held: Leases
) -> None:
    lease = taken(jobs, held)
    lease.ends = jobs.find(lease.job, "ours").created
    held.start()
    jobs.pause(lease.job, "ours")
    until(lambda: lease.wanted == "pause")
    assert jobs.find(lease.job, "ours").ends == lease.ends
    jobs.resume(lease.job, "ours")
    until(lambda: lease.wanted is None)


def test_the_work_stops_where_another_has_the_job(jobs: Jobs, held: Leases) -> None:
    first, other = taken(jobs, held), taken(jobs, held)
    stopped: list[str] = []
    first.stop = lambda: stopped.append(first.job)
    jobs.end(first.job, "w", Outcome("failed"))
    held.renew()
    assert (first.gone, stopped, other.gone) == (True, [first.job], False)


def test_the_work_stops_where_the_lease_could_not_be_renewed_in_time(
    jobs: Jobs, held: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = taken(jobs, held)
    stopped: list[str] = []
    lease.stop = lambda: stopped.append(lease.job)
    real, away = jobs.renew_all, True

    def renew_all(*how: Any) -> Any:
        if away:
            raise StoreFailed("the database is away")
        return real(*how)

    monkeypatch.setattr(jobs, "renew_all", renew_all)
    held.renew()
    assert not lease.gone
    held.start()
    until(lambda: stopped)
    assert lease.gone
    away = False
    time.sleep(0.3)
    assert lease.gone  # it is too late: another worker may be at it


def test_others_count_as_dead_only_where_they_could_have_renewed(
    jobs: Jobs, held: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(leases, "monotonic", lambda: now[0])
    jobs.lease_s = 30.0

    def reach(seconds: float, every: float = 0.5) -> bool:
        for _ in range(int(seconds / every)):
            now[0] += every
            held.reached()
        return held.steady

    assert not held.steady
    assert not reach(9)
    assert reach(2)
    held.failed()
    assert not held.steady
    assert not reach(9)
    assert reach(2)
    now[0] += 20  # as on a machine that slept, or behind a lock that all waited for
    held.reached()
    assert not held.steady
    assert not reach(9)
    assert reach(2)


class TestWorker:
    @pytest.fixture
    def stage(self, tmp_path: Path, database: str) -> Stage:
        return Stage(tmp_path, lease_s=0.5)

    def test_a_job_without_a_lease_is_left_and_given_back_without_counting(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job, _, puppet = stage.begin()
        time.sleep(0.6)
        monkeypatch.setattr(stage.jobs, "give_back", _away)
        stage.look()
        assert (puppet.left, stage.worker._attempts) == (1, [])
        monkeypatch.undo()
        stage.look()
        found = stage.found(job)
        assert (found.lost, found.worker) == (0, stage.worker.id)  # begun again
        assert len(stage.puppets.started) == 2

    def test_one_that_another_took_is_left_alone(self, stage: Stage) -> None:
        job, _, puppet = stage.begin()
        stage.jobs.lose(job.id, stage.worker.id)
        assert stage.jobs.lease("other", job.id) is not None
        stage.worker._leases.renew()
        stage.look()
        stage.look()
        assert puppet.left >= 1
        assert (stage.found(job).worker, stage.found(job).lost) == ("other", 1)

    def test_a_worker_that_just_came_puts_nobodys_jobs_back(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = stage.ask()
        stage.jobs.lease("other", job.id)
        time.sleep(0.6)
        stage.look()
        assert stage.found(job).worker == "other"
        stage.look()
        time.sleep(0.3)
        stage.look()
        assert (stage.found(job).worker, stage.found(job).lost) == (stage.worker.id, 1)

    def test_a_lease_that_ran_out_while_files_were_fetched_begins_nothing(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = stage.ask()
        real = stage.worker._preparation.command

        def slowly(*how: Any) -> list[str]:
            time.sleep(0.6)
            return real(*how)

        monkeypatch.setattr(stage.worker._preparation, "command", slowly)
        stage.look()
        stage.worker._give_back_owed()
        assert stage.puppets.started == []
        assert (stage.found(job).status, stage.found(job).lost) == ("queued", 0)


def _away(*_: Any) -> Any:
    raise StoreFailed("the database is away")
