"""What a trainer is told."""

from pathlib import Path
from typing import Any

import pytest

from service.jobs.preparation import Preparation
from tests.service.jobs.stage import Stage


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Stage:
    return Stage(tmp_path)


def name_told(stage: Stage, **asked: Any) -> str:
    """The adapter's name in the command of a job that begins."""
    job = stage.ask(**asked)
    command = Preparation(stage.registry, stage.worker.files).command(job, stage.folder / job.id)
    (told,) = (part for part in command if part.startswith("--set=name="))
    return told.removeprefix("--set=name=").strip('"')


def test_two_projects_that_begin_with_one_suffix_get_names_of_their_own(stage: Stage) -> None:
    ours = name_told(stage, project="ours", suffix="support")
    theirs = name_told(stage, project="theirs", suffix="support")

    assert ours == "support"
    assert theirs.startswith("support-")
    assert theirs != ours


def test_the_jobs_of_a_project_share_the_name_that_is_their_suffix(stage: Stage) -> None:
    assert {name_told(stage, suffix="support") for _ in range(2)} == {"support"}


def test_a_name_of_another_task_is_not_taken(stage: Stage) -> None:
    stage.registry.claim("support", "ours", "classify")

    assert name_told(stage, suffix="support").startswith("support-")
