"""What a server does every hour beside requests: remove what has had its time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from adapters.errors import AdapterError

logger = logging.getLogger("modiste.upkeep")

FIRST_S = 60.0
"""After its start, when there is enough else to do."""
EVERY_S = 3600.0


async def keep_up(
    in_thread: Callable[[Callable[[], Any]], Awaitable[Any]], *works: Callable[[], Any]
) -> None:
    """For as long as the server runs; what fails is tried again the next time.

    Args:
        works: each does nothing where another server did it just now.
    """
    await asyncio.sleep(FIRST_S)
    while True:
        for work in works:
            try:
                await in_thread(work)
            except (AdapterError, OSError) as error:
                logger.warning("what has had its time is removed later: %s", error)
            except Exception:  # the loop must outlive any one failure
                logger.exception("what has had its time is not removed")
        await asyncio.sleep(EVERY_S)
