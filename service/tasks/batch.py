"""Several engine requests as one: in order, all cancelled together, summed up."""

import asyncio
import math
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from service.engine import Output
from service.tasks.responses import Usage

T = TypeVar("T")


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all calls at once; their results in the order given.

    When one fails, or this call is cancelled, the others are cancelled and waited for.

    Raises:
        the first failure itself, not a group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise _first(failures) from None
    return [task.result() for task in tasks]


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def usage_of(outputs: Iterable[Output]) -> Usage:
    """What all of an item's engine requests read and wrote."""
    read = written = 0
    for output in outputs:
        read += output.prompt_tokens
        written += len(output.token_ids)
    return Usage(prompt_tokens=read, completion_tokens=written)


def mean_probability(output: Output) -> float:
    """Geometric mean of the chosen tokens' probabilities, 0 to 1; 0 when they are unknown."""
    if not output.logprobs:
        return 0.0
    return math.exp(min(0.0, math.fsum(output.logprobs) / len(output.logprobs)))
