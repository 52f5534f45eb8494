"""The server's end: its parts know of it first, requests finish, and it comes in time.

A signal begins it through vLLM's own handler, which shuts the engine down; else the watchdog does,
because the engine has died. vLLM stops its front end before its engine has drained, and its engine
refuses what comes then with status 200 and no text: so nothing of vLLM's is stopped before the
requests that were let in have their answers.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import psutil

logger = logging.getLogger("modiste.ending")

CLOSE_S = 5.0
"""After the grace: what is left to connections to end by themselves."""
LAST_S = 12.0
"""After the grace, for all that remains; a pod is killed 15 s after it."""
ONE_SIGNAL_S = 0.5
"""Within so long a signal is the first one again, passed on by what started the server."""
FAILED = 1


@dataclass(slots=True)
class Outcome:
    """How the server ended, for the process's exit code."""

    asked: bool = False
    """Somebody told it to, with a signal."""
    failure: str = ""


class EndedByItself(Exception):
    """Nobody told the server to end."""


class Ending:
    """Begins once, from any thread; made in the server's event loop.

    Attributes:
        begun: seen by every thread at once.
        tell: called in the event loop once it has begun.
    """

    def __init__(self, outcome: Outcome | None = None) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        self._thread = threading.get_ident()
        self._inside, self._empty = 0, asyncio.Event()
        self._empty.set()
        self.outcome = Outcome() if outcome is None else outcome
        self.begun = False
        self.tell: list[Callable[[], None]] = []

    def begin(self, failure: str = "") -> None:
        """From here on no request is let in.

        Args:
            failure: why the server ends by itself.
        """
        if self.begun:
            return
        self.begun, self.outcome.failure = True, failure
        self.soon(self._tell_all)

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in the event loop, if that has not ended before."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def _tell_all(self) -> None:
        self._event.set()
        for one in self.tell:
            one()

    async def wait(self) -> None:
        await self._event.wait()

    # the requests that are being answered

    def enter(self) -> None:
        self._inside += 1
        self._empty.clear()

    def leave(self) -> None:
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    def drain(self, timeout: float) -> float:
        """Wait until all requests have left; what remains of the time, 0 where some have not.

        In the event loop, where it can't wait, all of it remains.
        """
        if threading.get_ident() == self._thread:
            return timeout
        self.outcome.asked = True  # vLLM answers signals in a thread
        began = monotonic()
        waiting = asyncio.run_coroutine_threadsafe(self._empty.wait(), self._loop)
        try:
            waiting.result(timeout)
        except TimeoutError:
            waiting.cancel()
            if self._inside:
                logger.warning("%d requests have not ended within %g s", self._inside, timeout)
                return 0.0
        return max(CLOSE_S, round(timeout - (monotonic() - began), 1))


def before_shutdown(client: Any, ending: Ending, tell: Callable[[], None]) -> None:
    """Let the end begin, and requests leave, before an engine's client is shut down.

    Args:
        tell: called in the event loop once the engine has stopped; those that are left wait for an
            answer that will not come, and vLLM does not always say so.
    """
    stop = client.shutdown

    def shutdown(timeout: float | None = None) -> None:
        ending.begin()  # from here on the engine's answers may be none
        if timeout is None:
            stop()
        else:
            stop(timeout=ending.drain(timeout))
        ending.soon(tell)

    client.shutdown = shutdown


def end_in_time(app: Any, ending: Ending, grace_s: float) -> None:
    """When the end has begun: see to it that it comes, or comes at once at a second signal.

    Args:
        app: has vLLM's HTTP server as `state.server`.
    """

    def begun() -> None:
        loop, failed = asyncio.get_running_loop(), bool(ending.outcome.failure)
        wait_s = 0.0 if failed else grace_s
        late = threading.Timer(
            wait_s + LAST_S, leave_at_once, (FAILED, "the server did not end in time")
        )
        late.daemon = True
        late.start()
        loop.call_later(ONE_SIGNAL_S, _end_at_the_next_signal)
        server = app.state.server
        server.should_exit |= failed  # else vLLM sets it once its engine has stopped
        loop.call_later(wait_s + CLOSE_S, partial(setattr, server, "force_exit", True))

    ending.tell.append(begun)


def _end_at_the_next_signal() -> None:
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, leave_at_once, 128 + number, "a second signal")


def end_at_once_until_ready() -> None:
    """While the server starts nobody is answered, so a signal ends it at once.

    vLLM's own handlers take the place of these once it listens. As the first process of a container
    one without a handler would not hear of SIGTERM at all.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_before_ready)


def _end_before_ready(number: int, _: object) -> None:
    name = signal.Signals(number).name
    leave_at_once(128 + number, f"{name} came before the server was ready")


def leave_at_once(code: int, why: str) -> None:
    """End this process and the engine's, which would notice only once they have imported or loaded
    what they are at. A worker has a session of its own: the kernel tells it, and it gives its jobs
    back."""
    logger.error("%s: ends at once", why)
    session = os.getsid(0)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session:
                process.kill()
    os._exit(code)
