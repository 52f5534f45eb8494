"""What passes fails no job, and what is wrong with one job is told of that one alone."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import StoreFailed
from service.errors import NotReady
from service.files import ContentLost
from service.jobs import preparation, setbacks
from service.jobs.setbacks import Setbacks
from tests.service.jobs.stage import Stage

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/secret")


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Stage:
    return Stage(tmp_path)


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


class TestBeginning:
    @pytest.mark.parametrize(
        ("error", "says"),
        [(FULL, "No space left on device"), (StoreFailed("S3 is away", hint="x"), "S3 is away")],
    )
    def test_a_job_waits_until_its_files_can_be_fetched(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
    ) -> None:
        job = stage.ask()
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(stage.worker.files, "content", failing(error))
                patch.setattr(preparation.shutil, "copyfile", failing(error))
                stage.look()
            found = stage.found(job)
            assert (found.status, found.lost, found.worker) == ("queued", 0, None)
            stage.look()
            assert stage.puppets.started == []  # it pauses
            stage.pass_time()
        assert stage.messages(job)[2:] == [f"Waiting: {says}"]  # once
        stage.look()
        assert stage.found(job).status == "validating_files"

    @pytest.mark.parametrize("error", [FULL, NotReady("the cluster is away")])
    def test_a_job_waits_until_its_trainer_can_be_started(
        self, stage: Stage, error: Exception
    ) -> None:
        stage.puppets.fails = [error]
        job, next_ = stage.ask(), stage.ask()
        stage.look()
        assert (stage.found(job).status, stage.found(job).lost) == ("queued", 0)
        stage.look()
        assert stage.puppets.started[0][0] == next_.id  # which does not wait for that one

    def test_nothing_is_begun_for_some_seconds(self, stage: Stage) -> None:
        stage.puppets.fails = [FULL]
        stage.ask()
        stage.ask()
        for _ in range(3):
            stage.worker._begin_next()
        assert stage.puppets.started == []

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (OSError(errno.E2BIG, "too long"), "worker_failed"),
            (RuntimeError("a bug at /somewhere/secret"), "worker_failed"),
            (ContentLost("altered"), "store_failed"),
        ],
    )
    def test_what_does_not_pass_fails_the_one_job(
        self, stage: Stage, error: Exception, code: str
    ) -> None:
        stage.puppets.fails = [error]
        job, next_ = stage.ask(), stage.ask()
        stage.look()
        stage.look()
        found = stage.found(job)
        assert found.error is not None
        assert (found.status, found.error["code"]) == ("failed", code)
        assert "secret" not in found.error["message"]
        assert stage.found(next_).status == "validating_files"

    def test_a_job_that_can_not_be_looked_at_fails_and_the_next_is_begun(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = stage.worker._room

        def room(waiting: Any, *more: Any) -> Any:
            if waiting.id == job.id:
                raise KeyError("a bug")
            return real(waiting, *more)

        monkeypatch.setattr(stage.worker, "_room", room)
        job, next_ = stage.ask(), stage.ask()
        stage.look()
        assert (stage.found(job).status, stage.found(next_).status) == (
            "failed", "validating_files"
        )  # fmt: skip

    def test_whatever_the_queue_answers_the_worker_lives(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, _, puppet = stage.begin()
        job = stage.ask()
        for broken in ("line", "lease", "at_work"):
            with monkeypatch.context() as patch:
                patch.setattr(stage.jobs, broken, failing(RuntimeError("a bug")))
                stage.look()
        assert puppet.left == 0
        stage.look()
        assert stage.found(job).status == "validating_files"

    def test_a_lease_whose_answer_was_lost_is_given_back(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job, real = stage.ask(), stage.jobs.lease

        def lease(*how: Any) -> Any:
            real(*how)
            raise StoreFailed("the connection ended")

        with monkeypatch.context() as patch:
            patch.setattr(stage.jobs, "lease", lease)
            stage.look()
        assert stage.found(job).worker == stage.worker.id
        stage.look()
        assert stage.found(job).lost == 0
        assert len(stage.puppets.started) == 1


class TestTheTrainersOwn:
    @pytest.mark.parametrize(("code", "exit_code"), [("store_failed", 1), ("run_busy", 2)])
    def test_errors_that_pass_give_the_job_back(
        self, stage: Stage, code: str, exit_code: int
    ) -> None:
        job, attempt, _ = stage.begin()
        for count in (1, 2):
            stage.fail(attempt, code, exit_code)
            stage.look()
            found = stage.found(job)
            assert (found.status, found.lost, found.error) == ("queued", 0, None)
            assert len(stage.puppets.started) == count  # it pauses
            stage.pass_time()
            stage.look()
            (attempt,) = stage.worker._attempts
        assert stage.messages(job).count("Waiting: said so") == 1

    def test_other_errors_fail_it(self, stage: Stage) -> None:
        job, attempt, _ = stage.begin()
        stage.fail(attempt, "training_diverged", 1)
        stage.look()
        found = stage.found(job)
        assert found.error is not None
        assert (found.status, found.error["code"]) == ("failed", "training_diverged")

    @pytest.mark.parametrize(("wanted", "ends"), [("cancel", "cancelled"), ("pause", "paused")])
    @pytest.mark.parametrize("code", [130, 1, -15, -9])
    def test_one_that_was_asked_to_stop_has_stopped_however_it_ends(
        self, stage: Stage, wanted: str, ends: str, code: int
    ) -> None:
        job, _, puppet = stage.begin()
        getattr(stage.jobs, wanted)(job.id, "ours")
        stage.worker._leases.renew()
        stage.look()
        assert puppet.asked
        puppet.code = code
        stage.look()
        assert (stage.found(job).status, stage.found(job).lost) == (ends, 0)
        assert stage.found(job).ends is None

    def test_what_is_wanted_is_done_where_the_worker_ends_first(self, stage: Stage) -> None:
        job, attempt, puppet = stage.begin()
        attempt.stop("ending")
        stage.jobs.cancel(job.id, "ours")
        puppet.code = 130
        stage.look()
        assert stage.found(job).status == "cancelled"

    def test_a_bug_here_fails_the_job_and_spares_the_others(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job, attempt, puppet = stage.begin()
        other, _, theirs = stage.begin()
        puppet.code = 0  # and it published nothing
        stage.look()
        found = stage.found(job)
        assert found.error is not None
        assert (found.status, found.error["code"]) == ("failed", "worker_failed")
        assert (theirs.left, stage.found(other).status) == (0, "validating_files")
        assert attempt not in stage.worker._attempts


def test_pauses_grow_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(setbacks, "monotonic", lambda: now[0])
    made = Setbacks()
    for length in (30, 60, 120, 240, 300, 300):
        made.pause("a")
        now[0] += length - 1
        assert list(made.paused()) == ["a"]
        now[0] += 2
        assert list(made.paused()) == []
    now[0] += 3601
    assert list(made.paused()) == []
    made.pause("a")
    now[0] += 31
    assert list(made.paused()) == []


def test_a_worker_that_ends_gives_back_what_it_owes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = stage.ask()
    assert stage.jobs.lease(stage.worker.id, job.id) is not None
    stage.worker._setbacks.owe(job.id)
    stage.worker._reach_again = float("inf")  # the database was away a moment ago
    stage.worker.ending = True
    stage.worker.run()
    assert (stage.found(job).status, stage.found(job).lost) == ("queued", 0)
