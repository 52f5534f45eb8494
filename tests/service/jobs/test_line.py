"""Which job is next: projects take turns, and of two workers one has a job."""

import time
from typing import Any

from sqlalchemy import event

from service.database import JobRow
from service.jobs.queue import Jobs
from service.jobs.states import QUEUED
from tests.service.jobs.stage import order


def test_no_project_waits_for_all_jobs_of_another(jobs: Jobs) -> None:
    for _ in range(3):
        jobs.create(order("many"))
    jobs.create(order("few"))
    taken = [jobs.lease("w") for _ in range(4)]
    assert [job.project for job in taken if job is not None] == ["many", "few", "many", "many"]


def test_the_line_is_the_order_in_which_jobs_are_taken(jobs: Jobs) -> None:
    made = [jobs.create(order(project)) for project in ("many", "many", "few")]
    taken = jobs.lease("here-1")
    assert taken is not None
    assert taken.id == made[0].id
    assert [job.id for job in jobs.line(9)] == [made[2].id, made[1].id]
    assert [job.id for job in jobs.line(1)] == [made[2].id]
    assert (jobs.at_work("here-"), jobs.at_work("there-"), jobs.at_work("her%")) == (1, 0, 0)


def test_the_projects_take_turns_in_the_line(jobs: Jobs) -> None:
    many = [jobs.create(order("many")) for _ in range(5)]
    few = [jobs.create(order(project)) for project in ("few", "other", "few")]
    wanted = [many[0], few[0], few[1], many[1], few[2], *many[2:]]
    assert [job.id for job in jobs.line(9)] == [job.id for job in wanted]
    assert jobs.lease("w", many[0].id) is not None
    assert [job.id for job in jobs.line(4)] == [job.id for job in [*few[:2], many[1], few[2]]]
    assert [job.id for job in jobs.line(2, [few[0].id])] == [few[1].id, few[2].id]


def test_of_thousands_that_wait_few_are_read(jobs: Jobs) -> None:
    for _ in range(20):
        jobs.create(order())
    read: list[JobRow] = []

    def loaded(row: JobRow, _: Any) -> None:
        read.append(row)

    event.listen(JobRow, "load", loaded)
    try:
        line = jobs.line(2)
        assert jobs.lease("w", line[0].id) is not None
    finally:
        event.remove(JobRow, "load", loaded)
    assert len(read) == 3


def test_a_certain_job_is_taken_by_one_worker(jobs: Jobs) -> None:
    first, second = jobs.create(order()), jobs.create(order())
    taken = jobs.lease("w", second.id)
    assert taken is not None
    assert taken.id == second.id
    assert jobs.lease("other", second.id) is None
    assert jobs.find(first.id, "ours").status == QUEUED


def test_a_job_whose_worker_died_is_in_line_again(jobs: Jobs) -> None:
    quick = Jobs(jobs._database, lease_s=0.01)
    job = quick.create(order())
    quick.lease("w")
    time.sleep(0.03)
    quick.put_back_late()
    assert [waiting.id for waiting in quick.line(9)] == [job.id]
