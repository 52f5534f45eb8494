"""The server's work on batches: several at a time, of as many projects as wait."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic

from adapters.errors import AdapterError
from service.batches.bench import Bench
from service.batches.queue import LeaseLost
from service.batches.sweep import keep_sweeping
from service.batches.work import Work
from service.database import BatchRow

logger = logging.getLogger("modiste.batches")

AT_ONCE = 8
"""Batches of one server; their lines share the gate."""
OF_ANY = 4
"""Beyond so many, places are for projects that have none at work here."""
POLL_S = 0.5


def gate_places(sequences: int) -> tuple[int, int]:
    """Places for lines: while nobody waits, and beside requests that somebody waits for.

    Args:
        sequences: that the engine runs at once; some stay free for whoever comes.
    """
    alone = max(1, sequences - max(1, sequences // 8))
    return alone, max(1, alone // 4)


async def run_batches(bench: Bench) -> None:
    """Until the server ends."""
    beside = [
        asyncio.create_task(bench.gate.follow()), asyncio.create_task(keep_sweeping(bench))
    ]  # fmt: skip
    works: dict[asyncio.Task[None], BatchRow] = {}
    try:
        while not bench.ending.begun:
            works = {task: batch for task, batch in works.items() if not task.done()}
            if (found := await _next(bench, works.values())) is not None:
                works[_start(bench, *found)] = found[0]
                await asyncio.sleep(0)  # it has to run to see that it is cancelled
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(bench.ending.wait(), POLL_S)
    finally:
        for task in (*beside, *works):
            task.cancel()
        await asyncio.gather(*beside, *works, return_exceptions=True)


def _start(bench: Bench, batch: BatchRow, taken: float) -> "asyncio.Task[None]":
    task = asyncio.create_task(Work(bench, batch, taken).run())
    task.add_done_callback(_told)
    return task


async def _next(bench: Bench, own: Iterable[BatchRow]) -> tuple[BatchRow, float] | None:
    """A batch to work on, and when it was leased."""
    own = list(own)
    if len(own) >= AT_ONCE or bench.dead():
        return None
    served = {batch.project for batch in own} if len(own) >= OF_ANY else set()
    try:
        if not await asyncio.to_thread(bench.batches.waiting, served):
            return None
        taken, ids = monotonic(), [batch.id for batch in own]
        batch = await asyncio.to_thread(bench.batches.lease, bench.server, ids, served)
        if batch is not None and bench.ending.begun:
            with suppress(LeaseLost):
                await asyncio.to_thread(bench.batches.give_back, batch.id, bench.server)
            return None
    except AdapterError as error:
        logger.warning("batches can't be looked for: %s", error)
        return None
    except Exception:  # whatever it is, batches go on
        logger.exception("batches can't be looked for")
        return None
    return None if batch is None else (batch, taken)


def _told(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a batch is given up here until its lease ends", exc_info=error)
