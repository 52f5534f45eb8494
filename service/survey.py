"""Looks now and then at what metrics need a database or a disk for: no scrape waits for it."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select

from adapters.connect import Database
from adapters.errors import AdapterError
from service.batches import queue as batches
from service.database import BatchRow, JobRow
from service.jobs import states as jobs
from service.series import Pair
from service.telemetry import Metrics, PlatformGauges

logger = logging.getLogger("modiste.survey")

EVERY_S = 15.0
"""As often as most are scraped."""
JOB_STATUSES = (*jobs.UNENDED, *jobs.ENDED)
BATCH_STATUSES = (
    *batches.AT_WORK, batches.COMPLETED, batches.FAILED, batches.EXPIRED, batches.CANCELLED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """What the database has."""

    jobs: dict[str, int]
    """By status."""
    oldest_queued_s: float
    unattended_jobs: int
    batches: dict[str, int]
    open_lines: int
    late_batches: int


class Survey:
    """The looks of one server process.

    Args:
        home: its disk is looked at.
        loaded: versions in the engine, by their labels.
    """

    def __init__(
        self,
        database: Database,
        home: Path,
        metrics: Metrics,
        loaded: Callable[[], Collection[Pair]],
    ) -> None:
        self._database, self._home, self._metrics = database, home, metrics
        self._loaded = loaded

    async def run(self) -> None:
        """For as long as the server runs."""
        while True:
            try:
                await self.look()
            except Exception:  # the loop must outlive any one failure
                logger.exception("metrics of jobs and batches are not up to date")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Bring the gauges up to date; they stay as they are while the database is away."""
        self._metrics.sweep(self._loaded())
        gauges = self._metrics.platform
        try:
            disk = await asyncio.to_thread(shutil.disk_usage, self._home)
            gauges.disk_free.set(disk.free)
            gauges.disk_size.set(disk.total)
        except OSError as error:
            logger.warning("the disk of %s can't be looked at: %s", self._home, error.strerror)
        try:
            _tell(gauges, await asyncio.to_thread(find, self._database))
        except AdapterError:  # others have logged it
            gauges.database_up.set(0)
        else:
            gauges.database_up.set(1)


def _tell(gauges: PlatformGauges, found: Found) -> None:
    for status in JOB_STATUSES:
        gauges.jobs.labels(status).set(found.jobs.get(status, 0))
    for status in BATCH_STATUSES:
        gauges.batches.labels(status).set(found.batches.get(status, 0))
    gauges.oldest_queued_job.set(found.oldest_queued_s)
    gauges.unattended_jobs.set(found.unattended_jobs)
    gauges.open_batch_lines.set(found.open_lines)
    gauges.late_batches.set(found.late_batches)


def find(database: Database, now: datetime | None = None) -> Found:
    """What the database has.

    Raises:
        StoreFailed: it can't be used.
    """
    now = datetime.now(UTC) if now is None else now
    count, at_work = func.count(), JobRow.status.in_(jobs.AT_WORK)
    with database.read() as session:
        by_job = session.execute(select(JobRow.status, count).group_by(JobRow.status)).all()
        oldest = session.scalar(
            select(func.min(JobRow.created)).where(JobRow.status == jobs.QUEUED)
        )
        silent = JobRow.until < database.now(session)
        unattended = session.scalar(select(count).select_from(JobRow).where(at_work, silent))
        by_batch = session.execute(select(BatchRow.status, count).group_by(BatchRow.status)).all()
        going = session.scalars(select(BatchRow).where(BatchRow.status.in_(batches.AT_WORK))).all()
    return Found(
        jobs=dict(by_job),
        oldest_queued_s=0.0 if oldest is None else max(0.0, (now - oldest).total_seconds()),
        unattended_jobs=unattended or 0,
        batches=dict(by_batch),
        open_lines=sum(_open_lines(batch) for batch in going),
        late_batches=sum(_is_late(batch, now) for batch in going),
    )


def _open_lines(batch: BatchRow) -> int:
    return max(0, batch.total - batch.completed - batch.failed)


def _is_late(batch: BatchRow, now: datetime) -> bool:
    """Whether less of the lines is done than of the window has passed, in its second half."""
    window = (batch.expires - batch.created).total_seconds()
    passed = (now - batch.created).total_seconds()
    if batch.status == batches.CANCELLING or passed < window / 2:
        return False
    if batch.status == batches.VALIDATING:  # not begun, so nobody knows how many lines it has
        return True
    return _open_lines(batch) > 0 and 1 - _open_lines(batch) / batch.total < passed / window
