"""What is done for a caller ends once he goes away."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from starlette.types import Receive

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class WhileThere:
    """Cancels what runs within once the caller has gone, and then ends quietly.

    As `asyncio.timeout` does at a time. Within, `receive` is read here alone: the body has to have
    been read before.
    """

    __slots__ = ("_gone", "_left", "_over", "_receive", "_task", "_was_cancelled")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = self._over = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an answer is made in a task")
        self._task, self._was_cancelled = task, task.cancelling()
        self._gone = asyncio.create_task(self._wait())
        self._gone.add_done_callback(self._leave)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._over = True
        self._gone.cancel()
        if not self._left:
            return False
        return self._task.uncancel() <= self._was_cancelled and kind is asyncio.CancelledError

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _leave(self, _: "asyncio.Task[None]") -> None:
        if not self._over:
            self._left = True
            self._task.cancel()


def with_cancellation(
    handler: Callable[Arguments, Awaitable[Answer]],
) -> Callable[Arguments, Awaitable[Answer]]:
    """Let a route, whose request is `raw_request`, end when its caller goes away."""

    @wraps(handler)
    async def within(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        raw_request: Any = kwargs["raw_request"]
        async with WhileThere(raw_request.receive):
            return await handler(*args, **kwargs)
        return None  # type: ignore[return-value] # nobody reads it

    return within
