"""Short texts are rendered and tokenised on the event loop.

vLLM does both in a thread, one after the other. For a short text that takes longer than the work:
twice a thread has to wait for the interpreter, which a busy loop gives up after 5 ms.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

SHORT = 4096
"""Characters, messages and parts together; tokenising them takes about a millisecond."""
TEMPLATE = "chat_template"
"""The keyword that is the same for all requests."""


def run_short_calls_here(holder: Any, calls: Mapping[str, Callable[..., Any]]) -> None:
    """Let an object's functions that call others in a thread call them at once for short texts.

    Args:
        calls: by the names of those functions, what they call.
    """
    for name, call in calls.items():
        setattr(holder, name, here_if_short(call, getattr(holder, name)))


def here_if_short(
    call: Callable[..., Any], in_thread: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """One of the two, by what it is given."""

    def called(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        given = (value for name, value in kwargs.items() if name != TEMPLATE)
        if not is_short([*args, *given]):
            return in_thread(*args, **kwargs)
        future = asyncio.get_running_loop().create_future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever waits for the future has it
            future.set_exception(error)
        return future

    return called


def is_short(values: Iterable[Any]) -> bool:
    """Whether they are few characters, counting what is within lists and mappings."""
    left, pending = SHORT, list(values)
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
