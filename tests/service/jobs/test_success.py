"""What comes of a job comes once, wherever its worker is cut off."""

import csv
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import StoreFailed
from service.jobs.leased import LeasedJobs
from tests.adapters.parcels import draft, parcel
from tests.service.jobs.stage import Stage


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Stage:
    return Stage(tmp_path)


def away(*_: Any, **__: Any) -> Any:
    raise StoreFailed("the database is away")


def results(stage: Stage) -> list[Any]:
    files, _ = stage.worker.files.page(
        "ours", purposes=["fine-tune-results"], after=None, limit=100, rising=True
    )
    return files


def test_a_job_ends_well(stage: Stage) -> None:
    job, attempt, puppet = stage.begin(promote=True)
    reference = stage.publish(attempt)
    puppet.code = 0
    stage.look()
    found = stage.found(job)
    assert (found.status, found.result) == (
        "succeeded", stage.registry.find(reference).fine_tuned_model
    )  # fmt: skip
    (file,) = results(stage)
    assert found.result_file == file.id
    with stage.worker.files.content(file) as content:
        assert [row["step"] for row in csv.DictReader(content.open())] == ["1", "2"]
    assert stage.registry.find("made").reference == reference
    assert stage.messages(job)[-3:] == [
        f"{reference} is promoted", f"New fine-tuned model created: {found.result}",
        "The job has successfully completed",
    ]  # fmt: skip
    assert [entry.name for entry in attempt.folder.iterdir()] == []  # puppets write no log


@pytest.mark.parametrize("cut", ["end", "add_checkpoint", "renew"])
def test_whatever_is_cut_off_is_done_again_and_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    job, attempt, puppet = stage.begin(promote=True)
    stage.publish(attempt)
    puppet.code = 0
    with monkeypatch.context() as patch:
        patch.setattr(LeasedJobs, cut, away)
        for _ in range(3):
            stage.look()
    stage.look()
    assert stage.found(job).status == "succeeded"
    assert len(results(stage)) == 1
    assert len(stage.registry.alias_history("made")) == 1


def test_what_an_operator_rolled_back_meanwhile_stays_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stage.registry.publish(
        folder := parcel(stage.folder / "before", 7.0), draft(folder, "made")
    )
    stage.registry.promote(before.reference)
    job, attempt, puppet = stage.begin(promote=True)
    stage.publish(attempt)
    puppet.code = 0
    with monkeypatch.context() as patch:
        patch.setattr(stage.jobs, "end", away)
        stage.look()
    stage.registry.rollback("made")
    stage.look()
    assert stage.found(job).status == "succeeded"
    assert stage.registry.find("made").number == before.number


def test_a_promotion_that_the_database_does_not_take_is_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, attempt, puppet = stage.begin(promote=True)
    reference = stage.publish(attempt)
    puppet.code = 0
    with monkeypatch.context() as patch:
        patch.setattr(stage.registry, "promote", away)
        stage.look()
    assert stage.found(job).status == "running"
    stage.look()
    assert stage.found(job).status == "succeeded"
    assert stage.registry.find("made").reference == reference


def test_what_can_not_go_live_is_told_and_the_job_succeeds(stage: Stage) -> None:
    job, attempt, puppet = stage.begin(promote=True)
    version = stage.registry.find(stage.publish(attempt))
    stage.registry.quarantine(version, "wrong")
    puppet.code = 0
    stage.look()
    assert stage.found(job).status == "succeeded"
    assert [m for m in stage.messages(job) if m.startswith("Not promoted")]
    assert stage.registry.aliases("made") == {}


@pytest.mark.parametrize("late", [False, True])
def test_a_cancel_before_the_end_cancels(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    job, attempt, puppet = stage.begin(promote=True)
    reference = stage.publish(attempt)
    real = stage.worker.files.add

    def add(*how: Any) -> Any:
        stage.jobs.cancel(job.id, "ours")  # while the results are stored
        return real(*how)

    if late:
        monkeypatch.setattr(stage.worker.files, "add", add)
    else:
        stage.jobs.cancel(job.id, "ours")
    puppet.code = 0
    stage.look()
    found = stage.found(job)
    assert (found.status, found.result) == ("cancelled", None)
    assert [file.id for file in results(stage)] == ([found.result_file] if late else [])
    assert stage.registry.find(reference).state == "ready"
    assert stage.registry.aliases("made") == {}
