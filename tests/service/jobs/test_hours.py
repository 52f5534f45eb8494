"""A job may be at work for so long, in all of its attempts together."""

from pathlib import Path

import pytest

from service.jobs import course, hours
from service.jobs.hours import Hours
from tests.service.jobs.stage import Stage

HOUR_S = 3600.0


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(hours, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.worker._course.most_s = 2 * HOUR_S
    return made


def test_a_job_that_has_had_its_hours_is_stopped_and_fails_with_why(
    stage: Stage, clock: Clock
) -> None:
    job, _, puppet = stage.begin()
    clock.now = 2 * HOUR_S - 1
    stage.look()
    assert not puppet.asked
    clock.now = 2 * HOUR_S + 1
    stage.look()
    assert puppet.asked
    puppet.code = 130
    stage.look()
    found = stage.found(job)
    assert found.error is not None
    assert (found.status, found.error["code"]) == ("failed", "job_too_long")
    assert "at work for 2 hours" in stage.messages(job)[-1]


def test_attempts_count_together_and_what_lies_between_them_does_not(
    stage: Stage, clock: Clock
) -> None:
    job, _, first = stage.begin()
    clock.now = 1.5 * HOUR_S
    stage.look()
    stage.jobs.pause(job.id, "ours")
    stage.worker._leases.renew()
    stage.look()
    first.code = 130
    stage.look()
    assert stage.found(job).status == "paused"
    clock.now = 10 * HOUR_S
    stage.jobs.resume(job.id, "ours")
    stage.look()
    second = stage.puppets.started[-1][2]
    stage.look()
    assert not second.asked
    clock.now = 10.6 * HOUR_S
    stage.look()
    assert second.asked


def test_one_that_ends_well_while_it_is_stopped_has_succeeded(stage: Stage, clock: Clock) -> None:
    job, attempt, puppet = stage.begin()
    clock.now = 3 * HOUR_S
    stage.look()
    stage.publish(attempt)
    puppet.code = 0
    stage.look()
    assert stage.found(job).status == "succeeded"


def test_a_cancelled_job_is_cancelled_however_long_it_took(stage: Stage, clock: Clock) -> None:
    job, _, puppet = stage.begin()
    clock.now = 3 * HOUR_S
    stage.look()
    stage.jobs.cancel(job.id, "ours")
    puppet.code = 130
    stage.look()
    assert stage.found(job).status == "cancelled"


def test_a_trainer_that_does_not_stop_is_killed(
    stage: Stage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "TO_STOP_S", 60.0)
    job, _, puppet = stage.begin()
    clock.now = 2 * HOUR_S + 61
    stage.look()
    assert puppet.code == -9
    stage.look()
    found = stage.found(job)
    assert (found.status, found.lost) == ("failed", 0)


def test_a_note_that_was_cut_counts_as_none(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / hours.NAME).write_text("12.")
    assert Hours(tmp_path).spent_s == 12.0
    (tmp_path / hours.NAME).write_text("")
    counted = Hours(tmp_path)
    clock.now = 5.0
    counted.note()
    assert (tmp_path / hours.NAME).read_text() == ""
    clock.now = 31.0
    counted.note()
    assert Hours(tmp_path).spent_s == 31.0
