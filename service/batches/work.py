"""One batch at work in this server: read its file, ask its lines, join what came."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from adapters.digests import digest_file
from adapters.errors import AdapterError, StoreFailed
from service.batches.asking import Asking, Lines
from service.batches.bench import Bench
from service.batches.keeping import Keeping
from service.batches.lease import Lease
from service.batches.lines import Index, index_lines
from service.batches.queue import COMPLETED, EXPIRED, FAILED, MOST_LOST, LeaseLost, Outcome
from service.batches.results import Result, Teller
from service.batches.verdict import LOST, Verdict
from service.database import BatchRow
from service.errors import BadRequest, FileNotFound, NotReady
from service.files import About, File, derived_id
from service.scratch import scratch

logger = logging.getLogger("modiste.batches")

LOOK_S = 0.5
"""Between looks at what became of a batch."""
PAUSE_S = 10.0
"""Before a batch is tried again that something failed for."""
IN_PROCESS_BYTES = 2**20
"""Smaller files are read by the server itself: a process would take longer to start."""
_LATE = timedelta(hours=1)
"""So long the lines of a batch that has expired are looked for."""
_LAST_TRIES = 3
"""To give a batch back, when the server ends."""


class Work:
    """A batch that this server leased.

    Args:
        taken: when, by the monotonic clock.
    """

    def __init__(self, bench: Bench, batch: BatchRow, taken: float) -> None:
        self._bench, self._batch = bench, batch
        self._lease = Lease(
            bench.batches, batch, bench.server, taken, bench.keys.opens, bench.leasing
        )
        self._kept = Keeping(bench.parts, bench.batches, self._lease, bench.server)
        self._tell = Teller(batch.id)

    async def run(self) -> None:
        """To its end, or until the server ends or another has the batch."""
        working = asyncio.create_task(self._work())
        renewing = asyncio.create_task(self._lease.keep())
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await self._after(working.exception())
            else:
                logger.warning("%s is another server's now", self._batch.id)
        except asyncio.CancelledError:
            working.cancel()
            await asyncio.shield(self._give_back())
            raise
        finally:
            for task in (working, renewing):
                task.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)

    async def _after(self, error: BaseException | None) -> None:
        """What follows when the work ended with an error."""
        id_ = self._batch.id
        if isinstance(error, LeaseLost):
            logger.warning("%s is another server's now", id_)
        elif isinstance(error, AdapterError | OSError):  # away or full: no fault of the batch
            logger.warning("%s waits: %s", id_, error)
            await self._give_back(pause_s=PAUSE_S)
        elif error is not None:
            logger.error("%s is given back", id_, exc_info=error)
            await self._give_back(pause_s=PAUSE_S, lost=True)

    async def _work(self) -> None:
        await self._lease.renew()
        verdict = self._lease.verdict()
        if verdict is None and self._batch.lost >= MOST_LOST:
            verdict = Verdict(FAILED, LOST)
        with ExitStack() as stack:
            lines = None
            if verdict is None or verdict.status == EXPIRED:
                lines, verdict = await self._open(stack, verdict)
            if lines is not None:
                verdict = await self._ask(lines, verdict)
            await self._finish(lines, verdict or Verdict(COMPLETED))

    # the file

    async def _open(
        self, stack: ExitStack, verdict: Verdict | None
    ) -> tuple[Lines | None, Verdict | None]:
        """The lines, where they can be had; and how the batch ends."""
        try:
            place = await self._content(stack)
            index = await self._index(place)
        except (BadRequest, FileNotFound) as error:
            return None, verdict or Verdict.of(error)
        except NotReady as error:
            if verdict is None and self._batch.lost + 1 < MOST_LOST:
                raise
            return None, verdict or Verdict.of(error)
        except (AdapterError, OSError):
            if verdict is None or datetime.now(UTC) < self._batch.expires + _LATE:
                raise
            return None, verdict
        return await asyncio.to_thread(Lines.open, place, index), verdict

    async def _content(self, stack: ExitStack) -> Path:
        files, batch = self._bench.files, self._batch

        def find() -> File:
            return files.find(batch.input_file, batch.project, "input_file_id", expired=True)

        file = await asyncio.to_thread(find)
        return await asyncio.to_thread(stack.enter_context, files.content(file))

    async def _index(self, place: Path) -> Index:
        endpoint = self._batch.endpoint
        if (await asyncio.to_thread(place.stat)).st_size <= IN_PROCESS_BYTES:
            return await asyncio.to_thread(index_lines, place, endpoint)
        with scratch(self._bench.files.scratch) as folder:
            out = folder / "index"
            await self._bench.children.run("service.batches.lines", str(place), endpoint, str(out))
            return await asyncio.to_thread(Index.read, out)

    # on the way

    async def _ask(self, lines: Lines, verdict: Verdict | None) -> Verdict | None:
        """Ask all lines that are left; how the batch ends."""
        bench, id_, index = self._bench, self._batch.id, lines.index
        keys = await asyncio.to_thread(bench.batches.parts, id_)
        done = await asyncio.to_thread(bench.parts.numbers, keys)
        await asyncio.to_thread(bench.batches.begin, id_, bench.server, index.total)
        for fault in index.faults:
            if fault.number not in done:
                self._kept.add(self._tell.refused(fault))
        left = [at for at in index.order if index.numbers[at] not in done]
        logger.info("%s: %d of %d lines are left", id_, len(left), index.total)
        if not left:
            return None
        if verdict is not None:
            return verdict
        asking = Asking(bench, self._batch, lines, left, self._kept)
        while asking.left:
            if (verdict := await self._follow(asking)) is not None:
                return verdict
            if asking.left:  # the lease has to be renewed first
                await asyncio.sleep(LOOK_S)
        return None

    async def _follow(self, asking: Asking) -> Verdict | None:
        """Ask lines while the lease is held; how the batch ends before the last."""
        task = asyncio.create_task(asking.run())
        try:
            while not task.done() and self._lease.held:
                await asyncio.wait({task}, timeout=LOOK_S)
                self._kept.tend()
                if not task.done() and (verdict := self._lease.verdict()) is not None:
                    return verdict
            if task.done():
                await task
            else:
                logger.warning("%s pauses: its lease can't be renewed", self._batch.id)
            return None
        finally:
            task.cancel()
            await asyncio.wait({task})

    # the end

    async def _finish(self, lines: Lines | None, verdict: Verdict) -> None:
        """Join the parts into the files that the caller gets."""
        batch, bench = self._batch, self._bench
        await self._keep()
        await asyncio.to_thread(bench.batches.finalize, batch.id, bench.server)
        keys = await asyncio.to_thread(bench.batches.parts, batch.id)
        late = lines if verdict.status == EXPIRED else None
        # whatever went wrong, a batch is not complete without each of its lines
        least = lines.index.total if lines is not None and verdict.status == COMPLETED else None
        files, expired = await asyncio.to_thread(self._join, keys, late, least)
        output, errors = (None if file is None else file.id for file in files)
        reasons = None if verdict.error is None else [verdict.error]
        outcome = Outcome(verdict.status, output, errors, reasons, expired)
        status = await asyncio.to_thread(bench.batches.end, batch.id, bench.server, outcome)
        logger.info("%s is %s", batch.id, status)
        with suppress(StoreFailed):  # what stays is swept later
            await asyncio.to_thread(self._remove, keys, files)

    async def _keep(self) -> None:
        """Keep all that came, however long that takes."""
        while True:
            try:
                await self._kept.keep()
                return
            except (AdapterError, OSError) as error:
                logger.warning("%s: answers stay in memory: %s", self._batch.id, error)
            await asyncio.sleep(LOOK_S)

    def _join(
        self, keys: list[str], late: Lines | None, least: int | None
    ) -> tuple[tuple[File | None, File | None], int]:
        """The output file and the file of errors; and how many lines have expired."""
        bench = self._bench
        more: list[Result] = []
        if late is not None:
            more.extend(self._expired(late, bench.parts.numbers(keys)))
        with scratch(bench.files.scratch) as folder:
            joined = bench.parts.join(keys, more, folder)
            if least is not None and joined.lines < least:
                raise RuntimeError(f"{joined.lines} of {least} lines are in parts")
            files = self._add(joined.output, "output"), self._add(joined.errors, "error")
            return files, len(more)

    def _expired(self, lines: Lines, done: Iterable[int]) -> Iterator[Result]:
        done = set(done)
        for at, number in enumerate(lines.index.numbers):
            if number not in done:
                yield self._tell.expired(number, lines.read(at)["custom_id"])

    def _add(self, place: Path | None, kind: str) -> File | None:
        if place is None:
            return None
        batch, digest = self._batch, digest_file(place)
        about = About(
            batch.project, f"{batch.id}_{kind}.jsonl", "batch_output",
            batch.output_expires_after_s,
        )  # fmt: skip
        # its digest too: attempts that differ must not write over each other's content
        return self._bench.files.add(place, about, derived_id(batch.id, kind, digest))

    def _remove(self, keys: list[str], files: tuple[File | None, ...]) -> None:
        """The batch has ended; its parts are needed while its files are not whole."""
        bench = self._bench
        if all(file is None or bench.files.is_whole(file) for file in files):
            bench.parts.remove(self._batch.id, keys)
        else:
            logger.error("the files of %s are not whole; its parts stay", self._batch.id)

    async def _give_back(self, *, pause_s: float = 0.0, lost: bool = False) -> None:
        """Keep what came, and let another server go on, or this one later."""
        tries = 0
        while tries < _LAST_TRIES or not self._bench.ending.begun:
            tries += 1
            try:
                with suppress(LeaseLost):
                    await self._kept.keep()
                    await asyncio.to_thread(self._put_back, pause_s, lost)
                return
            except (AdapterError, OSError) as error:
                logger.warning("%s is not given back yet: %s", self._batch.id, error)
            await asyncio.sleep(LOOK_S)

    def _put_back(self, pause_s: float, lost: bool) -> None:
        self._bench.batches.give_back(
            self._batch.id, self._bench.server, pause_s=pause_s, lost=lost
        )
