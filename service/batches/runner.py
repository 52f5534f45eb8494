"""The server's work on batches: a few at a time, one after the other of each project."""

import asyncio
import logging

from adapters.errors import AdapterError
from service.batches.gate import Gate
from service.batches.work import Bench, Work

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
    works: set[asyncio.Task[None]] = set()
    try:
        while True:
            if len(works) < AT_ONCE and (work := await _next(bench)) is not None:
                task = asyncio.create_task(work.run())
                works.add(task)
                task.add_done_callback(works.discard)
                task.add_done_callback(_told)
                continue
            await asyncio.sleep(POLL_S)
    finally:
        following.cancel()
        for task in works:
            task.cancel()
        await asyncio.gather(*works, return_exceptions=True)


async def _next(bench: Bench) -> Work | None:
    try:
        if not await asyncio.to_thread(bench.batches.waiting):
            return None
        batch = await asyncio.to_thread(bench.batches.lease, bench.server)
    except AdapterError as error:
        logger.warning("batches can't be looked for: %s", error)
        return None
    return None if batch is None else Work(bench, batch)


def _told(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a batch is given up here until its lease ends", exc_info=error)


__all__ = ["Bench", "Gate", "gate_places", "run_batches"]
