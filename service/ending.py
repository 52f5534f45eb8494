"""That the server ends: known to all of its parts before the engine begins to drain."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any


class Ending:
    """Set once, from any thread; made in the server's event loop."""

    def __init__(self) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        self.begun = False
        """Seen by every thread at once."""

    def begin(self) -> None:
        self.begun = True
        with suppress(RuntimeError):  # the loop has ended before
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


def before_shutdown(client: Any, ending: Ending, tell: Sequence[Callable[[], None]] = ()) -> None:
    """Let `ending` begin before an engine's client does, from any thread; call the others
    in this event loop."""
    stop, loop = client.shutdown, asyncio.get_running_loop()

    def shutdown(*args: Any, **kwargs: Any) -> None:
        ending.begin()  # from here on the engine's answers may be none
        with suppress(RuntimeError):  # the loop has ended before
            for one in tell:
                loop.call_soon_threadsafe(one)
        stop(*args, **kwargs)

    client.shutdown = shutdown
