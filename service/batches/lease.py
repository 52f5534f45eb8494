"""A server's hold on a batch, and what it sees of the batch while it has it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from time import monotonic

from adapters.errors import AdapterError
from service.batches.queue import CANCELLED, CANCELLING, EXPIRED, FAILED, Batches
from service.batches.verdict import REVOKED, Verdict
from service.database import BatchRow

logger = logging.getLogger("modiste.batches")


class Lease:
    """Renewed by a task and threads of its own, whatever the file store and the engine do.

    Args:
        taken: when the batch was leased, by the monotonic clock.
        opens: whether a key still opens something.

    Attributes:
        batch: as it was when it was last seen.
    """

    def __init__(
        self, batches: Batches, batch: BatchRow, server: str, taken: float,
        opens: Callable[[str], bool], threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self._batches, self._server, self._opens = batches, server, opens
        self._threads, self._renewed = threads, taken
        self._revoked = False
        self.batch = batch

    @property
    def held(self) -> bool:
        """No other server can have the batch."""
        return monotonic() - self._renewed < self._batches.lease_s

    async def keep(self) -> None:
        """Renew it until another server has it; a database that is away is waited for.

        Raises:
            LeaseLost.
        """
        while True:
            await asyncio.sleep(self._batches.lease_s / 10)
            try:
                await self.renew()
            except AdapterError as error:
                logger.warning("the lease of %s is not renewed: %s", self.batch.id, error)

    async def renew(self) -> None:
        """Raises LeaseLost, StoreFailed."""
        began = monotonic()
        self.seen(await self._in_thread(self._look), began)

    def seen(self, batch: BatchRow, began: float) -> None:
        """The batch as a write saw it that renewed the lease and began then."""
        self.batch, self._renewed = batch, max(began, self._renewed)

    def _look(self) -> BatchRow:
        batch = self._batches.renew(self.batch.id, self._server)
        self._revoked = not self._opens(batch.caller)
        return batch

    async def _in_thread(self, call: Callable[[], BatchRow]) -> BatchRow:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def verdict(self) -> Verdict | None:
        """How the batch ends that asks no more lines; None: it goes on."""
        if self.batch.status == CANCELLING:
            return Verdict(CANCELLED)
        if self._revoked:
            return Verdict(FAILED, REVOKED)
        return Verdict(EXPIRED) if datetime.now(UTC) >= self.batch.expires else None
