"""One answer before anybody's: what is done once is done before the server says that it is ready.

The engine's first step imports and compiles what its own warm-up leaves out, and so does the first
chat on its way there and back. Together they took the first caller seconds.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol

from service.ending import Ending
from service.record import PRIORITY_INTERACTIVE

logger = logging.getLogger("modiste.warming")

AGAIN_S = 1.0


class ProbedEngine(Protocol):
    """`service.engine.Engine`."""

    async def probe(
        self, prompt_ids: list[int], token_ids: list[int], request: Any, *, priority: int
    ) -> list[float]: ...


class Warming:
    """Asks the engine for a token, until one comes, and then for a chat.

    Args:
        chat: asks the base for an answer, without a caller. A base may have no chat template, so
            what goes wrong with it holds up nobody.

    Attributes:
        ready: the engine has answered.
    """

    def __init__(
        self, engine: ProbedEngine, chat: Callable[[], Awaitable[None]], ending: Ending
    ) -> None:
        self._engine, self._chat, self._ending = engine, chat, ending
        self.ready = False

    async def run(self) -> None:
        """Once, at the start."""
        began = perf_counter()
        while True:
            if self._ending.begun:
                return
            try:
                await self._engine.probe([0], [0], None, priority=PRIORITY_INTERACTIVE)
                break
            except Exception as error:  # noqa: BLE001 - the watchdog ends what has died
                logger.warning("the engine gave no token yet: %s", error or type(error).__name__)
                await asyncio.sleep(AGAIN_S)
        try:
            await self._chat()
        except Exception as error:  # noqa: BLE001 - a caller is told what is wrong
            logger.warning("a first chat was not answered: %s", error or type(error).__name__)
        self.ready = True
        logger.info("the engine has answered; the first answer took %.1f s", perf_counter() - began)
