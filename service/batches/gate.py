"""How many lines of batches the engine has at once: few while somebody waits for an answer."""

import asyncio
from collections import deque

from service.traffic import Traffic

QUIET_S = 1.0
"""So long without a request that somebody waits for, and batches take all."""
_LOOK_S = 0.1


class Gate:
    """First come, first served, so that several batches share the places alike.

    Args:
        alone: places while nobody waits.
        beside: places beside requests that somebody waits for.
    """

    def __init__(self, traffic: Traffic, alone: int, beside: int) -> None:
        self._traffic, self._alone, self._beside = traffic, alone, beside
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def places(self) -> int:
        return self._alone if self._traffic.quiet_s() > QUIET_S else self._beside

    async def enter(self) -> None:
        """Wait for a place; `leave` gives it back."""
        if not self._waiting and self.running < self.places:
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self.running -= 1
        self._admit()

    async def follow(self) -> None:
        """Let lines in as it becomes quiet, for as long as the server runs."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self.running < self.places:
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)
