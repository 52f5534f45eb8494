"""The leases that a worker holds, renewed in a thread of its own, whatever the worker is at.

The thread brings back what each job's caller wants. Where a lease is another's, or could not be
renewed for its whole time, the work is to stop: another worker may have begun it.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

from adapters.errors import AdapterError
from service.jobs.leased import LeasedJobs

logger = logging.getLogger("modiste.worker")

RENEWALS = 6
"""Of a lease before it would run out."""
STEADY = 1 / 3
"""Of a lease: for so long the database was reached before others count as dead."""
LEAST_GAP_S = 2.0
"""Between two times that the database was reached, for it to have been there all along."""


@dataclass(slots=True)
class Lease:
    """A job in this worker's hands."""

    job: str
    lasts_s: float
    renewed: float
    """When the last renewal that succeeded was begun, `monotonic`."""
    ends: datetime | None = None
    """When the job is expected to be done, to be told."""
    wanted: str | None = None
    """What the job shall do next: cancel, or pause."""
    taken: bool = False
    """Another worker has the job, or it has ended."""
    stop: Callable[[], None] | None = None
    """Ends the work at once."""

    @property
    def gone(self) -> bool:
        """Whether the job may be another's by now."""
        return self.taken or monotonic() - self.renewed > self.lasts_s


class Leases:
    """All leases of a worker, each kept from `hold` until `let_go`."""

    def __init__(self, jobs: LeasedJobs, worker: str) -> None:
        self._jobs, self._worker = jobs, worker
        self._held: dict[str, Lease] = {}
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._since: float | None = None
        self._reached = 0.0
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ending.set()

    def hold(self, job: str, since: float) -> Lease:
        """Keep a lease from now on.

        Args:
            since: before it was asked for, `monotonic`.
        """
        lease = Lease(job, self._jobs.lease_s, since)
        with self._lock:
            self._held[job] = lease
        return lease

    def let_go(self, job: str) -> None:
        with self._lock:
            self._held.pop(job, None)

    def of(self, job: str) -> Lease | None:
        with self._lock:
            return self._held.get(job)

    def held(self) -> list[str]:
        with self._lock:
            return list(self._held)

    # whether the database is there

    def reached(self) -> None:
        """The database answered."""
        now = monotonic()
        gap = max(STEADY * self._jobs.lease_s, LEAST_GAP_S)
        if self._since is None or now - self._reached > gap:
            self._since = now
        self._reached = now

    def failed(self) -> None:
        """It did not."""
        self._since = None

    @property
    def steady(self) -> bool:
        """Whether it was there for so long that other workers had the time to renew."""
        since = self._since
        return since is not None and monotonic() - since > STEADY * self._jobs.lease_s

    # the thread

    def renew(self) -> None:
        """Renew all leases, and stop the work of those that are gone."""
        with self._lock:
            held = [lease for lease in self._held.values() if not lease.taken]
        if not held:
            return
        began = monotonic()
        try:
            wanted = self._jobs.renew_all(self._worker, {lease.job: lease.ends for lease in held})
        except AdapterError as error:
            self.failed()
            logger.warning("leases were not renewed: %s", error)
        else:
            self.reached()
            for lease in held:
                lease.taken = lease.job not in wanted
                if not lease.taken and not lease.gone:
                    lease.renewed, lease.wanted = began, wanted[lease.job]
        for lease in held:
            if lease.gone and lease.stop is not None:
                lease.stop()

    def _run(self) -> None:
        while not self._ending.wait(self._jobs.lease_s / RENEWALS):
            try:
                self.renew()
            except Exception:  # without it the worker would lose all its jobs
                self.failed()
                logger.exception("leases were not renewed")
