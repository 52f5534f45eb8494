"""Jobs in the database: of two workers one has a job, and nothing is told twice."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect

from adapters.registry import Registry
from service.database import JobRow
from service.errors import BadRequest, InUse, JobNotFound
from service.files import About, Files
from service.jobs import queue
from service.jobs.queue import Jobs, LeaseLost, uses_file
from service.jobs.states import (
    CANCELLED,
    FAILED,
    MOST_LOST,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    VALIDATING,
    Outcome,
    Told,
)
from tests.postgres import Postgres
from tests.service.jobs.stage import order

DEEDS = ["lease", "tell", "rest", "end", "lose", "back", "cancel", "pause", "resume"]


def messages(jobs: Jobs, job: JobRow) -> list[str]:
    events, _ = jobs.events(job.id, job.project, after=None, limit=100)
    return [event.message for event in reversed(events)]


def status(jobs: Jobs, job: JobRow) -> str:
    return jobs.find(job.id, job.project).status


def test_a_job_goes_its_way(jobs: Jobs) -> None:
    job = jobs.create(order())
    assert (job.status, status(jobs, job)) == (QUEUED, QUEUED)
    leased = jobs.lease("w")
    assert leased is not None
    assert (leased.id, leased.status) == (job.id, VALIDATING)
    assert jobs.lease("other") is None
    jobs.tell(job.id, "w", [Told("step-1", "one")], running=True, trained_tokens=7)
    assert (status(jobs, job), jobs.find(job.id, "ours").trained_tokens) == (RUNNING, 7)
    assert jobs.renew(job.id, "w") is None
    jobs.end(job.id, "w", Outcome(SUCCEEDED, model="ft:x", result_file="file-r"))
    ended = jobs.find(job.id, "ours")
    assert (ended.status, ended.result, ended.result_file) == (SUCCEEDED, "ft:x", "file-r")
    assert ended.finished is not None
    assert messages(jobs, job) == [
        f"Created fine-tuning job: {job.id}", "Validating the files", "one",
        "The job has successfully completed",
    ]  # fmt: skip
    for late in (
        lambda: jobs.renew(job.id, "w"),
        lambda: jobs.tell(job.id, "w", [Told("x", "late")]),
        lambda: jobs.end(job.id, "w", Outcome(FAILED)),
    ):
        with pytest.raises(LeaseLost):
            late()


def test_an_event_is_told_once(jobs: Jobs) -> None:
    job = jobs.create(order())
    jobs.lease("w")
    for _ in range(3):
        jobs.tell(job.id, "w", [Told("step-1", "one"), Told("step-2", "two")])
    assert Counter(messages(jobs, job))["one"] == 1


def test_pages_of_events_go_backwards_without_a_gap(jobs: Jobs) -> None:
    job = jobs.create(order())
    jobs.lease("w")
    jobs.tell(job.id, "w", [Told(f"step-{n}", str(n)) for n in range(7)])
    seen, after = [], None
    while True:
        events, more = jobs.events(job.id, "ours", after=after, limit=3)
        seen += [event.message for event in events]
        if not more:
            break
        after = events[-1].id
    assert seen[:7] == [str(n) for n in reversed(range(7))]
    with pytest.raises(BadRequest, match="after"):
        jobs.events(job.id, "ours", after="ftevent-x", limit=3)


def test_another_projects_jobs_are_not_there(jobs: Jobs) -> None:
    job = jobs.create(order())
    for ask in (
        lambda: jobs.find(job.id, "theirs"),
        lambda: jobs.cancel(job.id, "theirs"),
        lambda: jobs.pause(job.id, "theirs"),
        lambda: jobs.resume(job.id, "theirs"),
        lambda: jobs.events(job.id, "theirs", after=None, limit=1),
        lambda: jobs.checkpoints(job.id, "theirs", after=None, limit=1),
    ):
        with pytest.raises(JobNotFound):
            ask()
    assert jobs.page("theirs", after=None, limit=9, metadata=None) == ([], False)
    with pytest.raises(BadRequest):
        jobs.page("theirs", after=job.id, limit=9, metadata=None)


def test_jobs_are_listed_by_what_the_caller_noted(jobs: Jobs) -> None:
    one = jobs.create(order(metadata={"team": "a", "n": "1"}))
    jobs.create(order(metadata={"team": "b"}))
    jobs.create(order())
    found, more = jobs.page("ours", after=None, limit=9, metadata={"team": "a"})
    assert ([job.id for job in found], more) == ([one.id], False)
    assert len(jobs.page("ours", after=None, limit=9, metadata=None)[0]) == 3


class TestCancelAndPause:
    def test_what_waits_is_cancelled_at_once(self, jobs: Jobs) -> None:
        job = jobs.create(order())
        assert jobs.cancel(job.id, "ours").status == CANCELLED
        assert jobs.lease("w") is None
        with pytest.raises(BadRequest, match="is cancelled"):
            jobs.cancel(job.id, "ours")

    def test_what_is_at_work_is_told_to_its_worker(self, jobs: Jobs) -> None:
        job = jobs.create(order())
        jobs.lease("w")
        assert jobs.pause(job.id, "ours").status == VALIDATING
        assert jobs.renew(job.id, "w") == "pause"
        jobs.cancel(job.id, "ours")
        assert jobs.renew(job.id, "w") == "cancel"
        jobs.pause(job.id, "ours")  # a cancelled job does not only rest
        assert jobs.renew(job.id, "w") == "cancel"
        jobs.end(job.id, "w", Outcome(CANCELLED))
        assert status(jobs, job) == CANCELLED

    def test_a_paused_job_waits_until_it_is_resumed(self, jobs: Jobs) -> None:
        job = jobs.create(order())
        for _ in range(2):
            jobs.lease("w")
            jobs.pause(job.id, "ours")
            jobs.rest(job.id, "w")
            assert status(jobs, job) == PAUSED
            assert jobs.lease("w") is None
            with pytest.raises(BadRequest, match="is paused"):
                jobs.pause(job.id, "ours")
            assert jobs.resume(job.id, "ours").status == QUEUED
        assert messages(jobs, job).count("The job is paused") == 2
        assert messages(jobs, job).count("The job is resumed") == 2
        with pytest.raises(BadRequest, match="can't be resumed"):
            jobs.resume(job.id, "ours")
        assert jobs.pause(job.id, "ours").status == PAUSED
        assert jobs.cancel(job.id, "ours").status == CANCELLED


class TestWorkersThatDie:
    @pytest.fixture
    def jobs(self, registry: Registry) -> Jobs:
        return Jobs(registry.database, lease_s=0.05)

    def test_a_lost_job_goes_to_another_worker(self, jobs: Jobs) -> None:
        job = jobs.create(order())
        jobs.lease("first")
        jobs.put_back_late()
        assert jobs.line(9) == []
        time.sleep(0.06)
        jobs.put_back_late([job.id])  # which is in the asker's own hands
        assert jobs.line(9) == []
        jobs.put_back_late()
        again = jobs.lease("second")
        assert again is not None
        assert (again.id, again.lost) == (job.id, 1)
        with pytest.raises(LeaseLost):
            jobs.tell(job.id, "first", [Told("step-1", "late")])
        assert "late" not in messages(jobs, job)

    def test_a_job_that_kills_its_workers_fails(self, jobs: Jobs) -> None:
        job = jobs.create(order())
        for number in range(MOST_LOST):
            assert jobs.lease(f"w{number}") is not None
            time.sleep(0.06)
            jobs.put_back_late()
        assert jobs.lease("last") is None
        failed = jobs.find(job.id, "ours")
        assert failed.status == FAILED
        assert failed.error is not None
        assert failed.error["code"] == "worker_lost"

    @pytest.mark.parametrize(("wanted", "ends"), [("cancel", CANCELLED), ("pause", PAUSED)])
    def test_what_was_wanted_of_a_dead_worker_is_done(
        self, jobs: Jobs, wanted: str, ends: str
    ) -> None:
        job = jobs.create(order())
        jobs.lease("w")
        getattr(jobs, wanted)(job.id, "ours")
        time.sleep(0.06)
        jobs.put_back_late()
        assert status(jobs, job) == ends

    @pytest.mark.parametrize(("wanted", "ends"), [("cancel", CANCELLED), ("pause", PAUSED)])
    def test_what_is_wanted_after_the_worker_died_is_done_at_once(
        self, jobs: Jobs, wanted: str, ends: str
    ) -> None:
        job = jobs.create(order())
        jobs.lease("w")
        time.sleep(0.06)
        assert getattr(jobs, wanted)(job.id, "ours").status == ends
        assert status(jobs, job) == ends

    def test_a_new_step_forgets_the_deaths_before_it(self, jobs: Jobs) -> None:
        job = jobs.create(order())
        for further, left in ((1, QUEUED), (2, QUEUED), (2, FAILED)):
            step = Told(f"step-{further}", "-", type="metrics", data={"step": further})
            for _ in range(MOST_LOST - 1):
                if jobs.lease("w") is not None:
                    jobs.tell(job.id, "w", [step])  # is new the first time alone
                    jobs.lose(job.id, "w")
            assert status(jobs, job) == left
        assert jobs.last_step(job.id) == 2

    def test_a_lease_that_is_renewed_lasts(self, jobs: Jobs) -> None:
        job = jobs.create(order())
        jobs.lease("w")
        for _ in range(4):
            time.sleep(0.03)
            jobs.renew(job.id, "w")
            assert jobs.lease("other") is None


def test_every_job_has_one_worker_however_many_ask(jobs: Jobs) -> None:
    made = {jobs.create(order()).id for _ in range(20)}
    taken: list[str] = []
    lock = threading.Lock()

    def work(worker: int) -> None:
        while (job := jobs.lease(f"w{worker}")) is not None:
            with lock:
                taken.append(job.id)
            jobs.end(job.id, f"w{worker}", Outcome(SUCCEEDED))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(taken) == sorted(made)


def test_what_is_wanted_is_done_before_a_job_is_given_back(jobs: Jobs) -> None:
    now = datetime.now(UTC)
    for wanted, ends in (("cancel", CANCELLED), ("pause", PAUSED), (None, QUEUED)):
        job = jobs.create(order())
        jobs.lease("w", job.id)
        jobs.renew_all("w", {job.id: now})
        assert jobs.find(job.id, "ours").ends == now
        if wanted is not None:
            getattr(jobs, wanted)(job.id, "ours")
        assert jobs.give_back(job.id, "w", "Waiting") == ends
        found = jobs.find(job.id, "ours")
        assert (found.status, found.wanted, found.ends, found.worker) == (ends, None, None, None)
        assert ("Waiting" in messages(jobs, job)) == (wanted is None)


@pytest.mark.parametrize("deed", ["rest", "lose"])
def test_nothing_is_expected_of_a_job_that_is_not_at_work(jobs: Jobs, deed: str) -> None:
    job = jobs.create(order())
    jobs.lease("w")
    jobs.renew_all("w", {job.id: datetime.now(UTC)})
    getattr(jobs, deed)(job.id, "w")
    assert jobs.find(job.id, "ours").ends is None


def test_leases_go_by_the_databases_clock(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", postgres.ready())
    jobs = Jobs(Registry.open(tmp_path).database)
    jobs.create(order())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)  # a machine that is late
    job = jobs.lease("late")
    assert job is not None
    assert abs(job.until - jobs.lease_s - real()) < 5
    monkeypatch.setattr(time, "time", lambda: real() + 3600)  # and one that is early
    jobs.put_back_late()
    assert jobs.find(job.id, "ours").worker == "late"


def test_what_no_database_takes_is_told_without_it(jobs: Jobs) -> None:
    job = jobs.create(order())
    jobs.lease("w")
    jobs.tell(job.id, "w", [Told("odd", "a\0b\ud800c\N{SNOWMAN}")])
    error = {"code": "c", "message": "m\0" + "x" * 9000, "param": None}
    jobs.end(job.id, "w", Outcome(FAILED, error=error))
    assert messages(jobs, job)[2] == "a\N{REPLACEMENT CHARACTER}b?c\N{SNOWMAN}"
    found = jobs.find(job.id, "ours")
    assert found.error is not None
    assert found.error["param"] is None
    assert found.error["message"] == "m\N{REPLACEMENT CHARACTER}" + "x" * 3998
    assert len(messages(jobs, job)[-1]) <= 4000


def test_events_of_a_job_have_an_index_in_their_order(registry: Registry) -> None:
    indexes = inspect(registry.database.engine).get_indexes("job_events")
    assert ["job", "number"] in [index["column_names"] for index in indexes]


def test_why_a_job_waits_is_told_once_a_wait(jobs: Jobs) -> None:
    job = jobs.create(order())
    for free in "123":
        jobs.tell_waiting(job.id, f"Waiting: {free} free")
    assert messages(jobs, job)[1:] == ["Waiting: 1 free"]
    jobs.lease("w")
    jobs.tell_waiting(job.id, "late")
    jobs.give_back(job.id, "w")
    jobs.tell_waiting(job.id, "Waiting: 4 free")
    assert [m for m in messages(jobs, job) if m != "Validating the files"][1:] == [
        "Waiting: 1 free", "Waiting: 4 free"
    ]  # fmt: skip
    events, _ = jobs.events(job.id, "ours", after=None, limit=1)
    assert events[0].level == "warn"


def test_a_file_of_a_job_stays_until_it_has_ended(
    jobs: Jobs, registry: Registry, tmp_path: Path
) -> None:
    files = Files(registry.database, registry.home, [uses_file])
    (tmp_path / "content").write_bytes(b"{}\n")
    file = files.add(tmp_path / "content", About("ours", "a.jsonl", "fine-tune"))
    job = jobs.create(order(training_file=file.id))
    with pytest.raises(InUse, match=job.id):
        files.delete(file.id, "ours")
    jobs.cancel(job.id, "ours")
    files.delete(file.id, "ours")


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from(
            ["lease", "tell", "rest", "end", "lose", "back", "cancel", "pause", "resume"]
        )
    )
)
def test_whatever_happens_a_job_has_one_end_and_only_known_ways(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str]
) -> None:
    jobs = Jobs(Registry.open(tmp_path_factory.mktemp("home")).database)
    job = jobs.create(order())
    told = 0
    deeds = {
        "lease": lambda: jobs.lease("w"),
        "tell": lambda: jobs.tell(job.id, "w", [Told("step-1", "one")], running=True),
        "rest": lambda: jobs.rest(job.id, "w"),
        "end": lambda: jobs.end(job.id, "w", Outcome(SUCCEEDED)),
        "lose": lambda: jobs.lose(job.id, "w"),
        "back": lambda: jobs.give_back(job.id, "w"),
        "cancel": lambda: jobs.cancel(job.id, "ours"),
        "pause": lambda: jobs.pause(job.id, "ours"),
        "resume": lambda: jobs.resume(job.id, "ours"),
    }
    ended = None
    for act in acts:
        with suppress(LeaseLost, BadRequest):
            deeds[act]()
        now = jobs.find(job.id, "ours")
        if ended is not None:
            assert now.status == ended
        if now.status in queue.ENDED:
            ended = now.status
        assert (now.worker is not None) == (now.status in queue.AT_WORK)
        events = messages(jobs, job)
        assert len(events) >= told
        told = len(events)
        assert events.count("one") <= 1
