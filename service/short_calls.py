"""Short texts are rendered and tokenised on the event loop.

vLLM does both in a thread, one after the other. For a short text that takes longer than the work:
twice a thread has to wait for the interpreter, which a busy loop gives up after 5 ms.
"""

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

SHORT = 4096
"""Characters, messages and parts together; tokenising them takes about a millisecond."""
TEMPLATE = "chat_template"
"""The keyword that is the same for all requests."""


class ShortHere(Executor):
    """Runs short calls at once where they are submitted; all others as another executor does."""

    def __init__(self, others: Executor) -> None:
        super().__init__()
        self.others = others

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        if not is_short(fn) or args or kwargs:
            return self.others.submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        try:
            future.set_result(fn())
        except Exception as error:  # noqa: BLE001 - whoever waits for the future has it
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.others.shutdown(wait=wait, cancel_futures=cancel_futures)


def run_short_calls_here(renderer: Any) -> None:
    """Let a renderer of vLLM's do so; its executor keeps its own for whatever takes long."""
    executor = renderer._executor
    executor._inner = ShortHere(executor._inner)


def is_short(call: Any) -> bool:
    """Whether what a partial function is given are few characters."""
    if not isinstance(call, partial):
        return False
    left = SHORT
    pending: list[Any] = [*call.args]
    pending += [value for name, value in call.keywords.items() if name != TEMPLATE]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, Mapping):
            pending.extend(value.values())
            left -= len(value)
        elif isinstance(value, list | tuple):
            pending.extend(value)
            left -= len(value)
        if left < 0:
            return False
    return True
