"""The server's work on batches: a few at a time, one after the other of each project."""

import asyncio
import logging
from collections.abc import Collection

from adapters.errors import AdapterError
from service.batches.work import Bench, Work
from service.database import BatchRow

logger = logging.getLogger("modiste.batches")

AT_ONCE = 4
"""Batches of one server; their lines share the gate."""
POLL_S = 0.5


def gate_places(sequences: int) -> tuple[int, int]:
    """Places for lines: while nobody waits, and beside requests that somebody waits for.

    Args:
        sequences: that the engine runs at once; some stay free for whoever comes.
    """
    alone = max(1, sequences - max(1, sequences // 8))
    return alone, max(1, alone // 4)


async def run_batches(bench: Bench) -> None:
    """For as long as the server runs."""
    following = asyncio.create_task(bench.gate.follow())
    works: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            works = {id_: task for id_, task in works.items() if not task.done()}
            if len(works) < AT_ONCE and (batch := await _next(bench, works)) is not None:
                works[batch.id] = asyncio.create_task(Work(bench, batch).run())
                works[batch.id].add_done_callback(_told)
                continue
            await asyncio.sleep(POLL_S)
    finally:
        following.cancel()
        for task in works.values():
            task.cancel()
        await asyncio.gather(*works.values(), return_exceptions=True)


async def _next(bench: Bench, own: Collection[str]) -> BatchRow | None:
    try:
        if not await asyncio.to_thread(bench.batches.waiting):
            return None
        return await asyncio.to_thread(bench.batches.lease, bench.server, list(own))
    except AdapterError as error:
        logger.warning("batches can't be looked for: %s", error)
        return None


def _told(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a batch is given up here until its lease ends", exc_info=error)
