"""How long the event loop is held up, and by what.

All requests of a server take turns on one loop: what computes long on it, or waits for a disk or a
database, makes every stream pause. A beat that should come ten times a second tells how late it is;
a thread looks where the loop stands when it is very late.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic
from traceback import StackSummary, walk_stack
from types import FrameType

logger = logging.getLogger("modiste.loop")

EVERY_S = 0.1
TELL_S = 0.5
"""A loop that is held up for longer is told in the log: this is no normal work."""
OURS = ("service", "adapters")
_STAND = "/proc/thread-self/schedstat"


class LoopWatch:
    """Watches the loop that it runs in.

    Args:
        held: told of each beat's lateness in seconds, without the time that the thread waited for
            a core: that is not the loop's, and the node's metrics have it.
    """

    def __init__(
        self, held: Callable[[float], None], every_s: float = EVERY_S, tell_s: float = TELL_S
    ) -> None:
        self._held, self._every_s, self._tell_s = held, every_s, tell_s
        self._due = float("inf")
        self._place = ""
        self._done = threading.Event()

    async def run(self) -> None:
        """For as long as the server runs."""
        thread = threading.Thread(
            target=self._look, args=(threading.get_ident(),), name="modiste-loop", daemon=True
        )
        thread.start()
        waits = _Waits()
        try:
            while True:
                waited_s = waits.seconds()
                self._due = monotonic() + self._every_s
                await asyncio.sleep(self._every_s)
                held_s = monotonic() - self._due - (waits.seconds() - waited_s)
                self._held(max(0.0, held_s))
                place, self._place = self._place, ""
                if place and held_s > self._tell_s:
                    logger.warning("the event loop was held up for %.1f s by %s", held_s, place)
        finally:
            self._done.set()
            waits.close()

    def _look(self, loop_thread: int) -> None:
        while not self._done.wait(self._every_s):
            if monotonic() - self._due > self._tell_s and not self._place:
                frame = sys._current_frames().get(loop_thread)
                self._place = "" if frame is None else place_of(frame)


def place_of(frame: FrameType) -> str:
    """Where a thread stands: the innermost line, and the innermost one of ours that led there."""
    stack = list(StackSummary.extract(walk_stack(frame), lookup_lines=False))
    ours = next((one for one in stack if _is_ours(one.filename)), stack[0])
    told = f"{ours.name} ({_short(ours.filename)}:{ours.lineno})"
    inner = stack[0]
    if inner is not ours:
        told += f", in {inner.name} ({_short(inner.filename)}:{inner.lineno})"
    return told


def _is_ours(path: str) -> bool:
    parts = path.split("/")
    return "site-packages" not in parts and any(package in parts[:-1] for package in OURS)


def _short(path: str) -> str:
    return "/".join(path.split("/")[-3:])


class _Waits:
    """How long this thread was ready to run and had no core, as Linux counts it; else 0."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(_STAND, os.O_RDONLY)
        except OSError:
            self._file = None

    def seconds(self) -> float:
        if self._file is None:
            return 0.0
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
