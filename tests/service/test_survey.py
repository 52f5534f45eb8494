"""Gauges of jobs, batches and the database, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters.connect import Database
from adapters.errors import StoreFailed
from adapters.registry import Registry
from service import survey
from service.batches.queue import CANCELLING, IN_PROGRESS, VALIDATING, Batches, NewBatch
from service.database import BatchRow
from service.jobs.queue import Jobs
from service.survey import Survey, find
from service.telemetry import Metrics
from tests.service.jobs.stage import order


@pytest.fixture
def database(tmp_path: Path, database: str) -> Database:
    return Registry.open(tmp_path).database


def batch(database: Database, **columns: Any) -> None:
    made = Batches(database).create(NewBatch("ours", "key", "/v1/generate", "f", "24h", None, None))
    with database.write() as session:
        row = session.get(BatchRow, made.number)
        assert row is not None
        for name, value in columns.items():
            setattr(row, name, value)


def test_jobs_are_told_by_status_with_the_oldest_wait(database: Database) -> None:
    jobs = Jobs(database)
    first, _ = jobs.create(order()), jobs.create(order())
    later = first.created + timedelta(minutes=5)
    found = find(database, later)
    assert found.jobs == {"queued": 2}
    assert 299 < found.oldest_queued_s <= 300
    jobs.lease("w")
    assert find(database).jobs == {"queued": 1, "validating_files": 1}
    jobs.lease("w")
    assert find(database).oldest_queued_s == 0


def test_a_job_whose_worker_is_silent_is_unattended(database: Database) -> None:
    jobs = Jobs(database)
    jobs.create(order())
    jobs.lease("w")
    assert find(database).unattended_jobs == 0
    Jobs(database, lease_s=-1).create(order())
    Jobs(database, lease_s=-1).lease("w")

    assert find(database).unattended_jobs == 1


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DONE_HALF = {"total": 100, "completed": 40, "failed": 10, "status": IN_PROGRESS}


@pytest.mark.parametrize(
    ("columns", "passed_h", "late"),
    [
        ({**DONE_HALF, "completed": 60}, 13, 0),  # faster than it must be
        (DONE_HALF, 20, 1),
        ({**DONE_HALF, "completed": 0, "failed": 0}, 8, 0),  # its turn may yet come
        ({**DONE_HALF, "completed": 90, "failed": 10}, 23, 0),  # all lines are answered
        ({**DONE_HALF, "status": CANCELLING}, 20, 0),
        ({"status": VALIDATING}, 20, 1),
    ],
)  # fmt: skip
def test_a_batch_is_late_that_will_expire_at_its_pace(
    database: Database, columns: dict[str, Any], passed_h: int, late: int
) -> None:
    created = NOW - timedelta(hours=passed_h)
    batch(database, created=created, expires=created + timedelta(hours=24), **columns)

    assert find(database, NOW).late_batches == late


def test_a_look_brings_the_gauges_up_to_date(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Jobs(database).create(order())
    batch(database, **DONE_HALF)
    metrics = Metrics(CollectorRegistry())
    watch = Survey(database, tmp_path, metrics, set)
    asyncio.run(watch.look())
    told = metrics.registry.get_sample_value
    assert told("modiste_jobs", {"status": "queued"}) == 1
    assert told("modiste_jobs", {"status": "running"}) == 0
    assert told("modiste_batches", {"status": "in_progress"}) == 1
    assert told("modiste_open_batch_lines") == 50
    assert told("modiste_database_up") == 1
    assert 0 < told("modiste_disk_free_bytes") < told("modiste_disk_size_bytes")  # type: ignore[operator]

    def away(_database: Database) -> None:
        raise StoreFailed("the database can't be used")

    monkeypatch.setattr(survey, "find", away)
    asyncio.run(watch.look())
    assert told("modiste_database_up") == 0
    assert told("modiste_jobs", {"status": "queued"}) == 1
