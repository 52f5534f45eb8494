"""Folders of jobs: their files stay while they are needed, and only a log after that."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from service.database import FileRow
from service.errors import FileNotFound
from service.jobs import folders
from service.jobs.states import Outcome
from tests.service.jobs.stage import Stage


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Stage:
    return Stage(tmp_path)


def expire(stage: Stage, file: str) -> None:
    late = datetime.now(UTC) - timedelta(seconds=9)
    with stage.registry.database.write() as session:
        session.execute(update(FileRow).where(FileRow.id == file).values(expires=late))
    stage.worker.files.expire()


def test_a_file_that_expired_while_the_job_waited_is_there(stage: Stage) -> None:
    job = stage.ask()
    expire(stage, job.training_file)
    with pytest.raises(FileNotFound):
        stage.worker.files.find(job.training_file, "ours")
    stage.look()
    assert stage.found(job).status == "validating_files"
    assert (stage.worker._folder(job) / "training.jsonl").read_bytes() == b"{}\n"


def test_a_copy_that_is_there_is_enough(stage: Stage) -> None:
    job, _, puppet = stage.begin()
    with stage.registry.database.write() as session:  # as no job should see
        session.execute(FileRow.__table__.delete())  # type: ignore[attr-defined]
    puppet.code = 130
    stage.look()
    assert len(stage.puppets.started) == 2
    assert stage.found(job).status == "validating_files"


@pytest.mark.parametrize("how", ["failed", "cancelled", "at the queue"])
def test_after_the_end_only_the_log_is_left(stage: Stage, how: str) -> None:
    job, attempt, puppet = stage.begin()
    (attempt.folder / "log").write_text("said\n")
    (attempt.folder / "run" / "checkpoints").mkdir(parents=True)
    if how == "failed":
        stage.fail(attempt, "training_diverged", 1)
        stage.look()
    elif how == "cancelled":
        stage.jobs.cancel(job.id, "ours")
        puppet.code = 130
        stage.look()
    else:
        stage.worker.at_once = 0
        stage.jobs.give_back(job.id, stage.worker.id)
        stage.jobs.cancel(job.id, "ours")
        stage.worker._clean()
    assert [entry.name for entry in attempt.folder.iterdir()] == ["log"]


def test_the_sweep_spares_what_goes_on_and_what_is_new(stage: Stage) -> None:
    _, attempt, _ = stage.begin()
    rests, resting, puppet = stage.begin()
    stage.jobs.pause(rests.id, "ours")
    puppet.code = 130
    stage.look()
    ended, ending, _ = stage.begin()
    stage.jobs.end(ended.id, stage.worker.id, Outcome("failed"))
    jobs = stage.registry.home.jobs
    new, old, else_ = jobs / "ftjob-new", jobs / "ftjob-old", jobs / "mine"
    for folder in (new, old, else_):
        folder.mkdir()
        (folder / "file").touch()
    (ending.folder / "link").symlink_to(else_)
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    stage.worker._clean()
    left = {f.name: {e.name for e in f.iterdir()} for f in jobs.iterdir()}
    assert left == {
        attempt.job.id: {"training.jsonl"}, rests.id: {"training.jsonl", "spent_s"},
        ended.id: set(),
        new.name: {"file"}, else_.name: {"file"},
    }  # fmt: skip
    asked: list[str] = []
    folders.sweep(jobs, lambda ids: asked.extend(ids) or {})
    assert set(asked) == {attempt.job.id, rests.id, ended.id, new.name}
    assert resting.folder.is_dir()
