"""From an HTTP request to its place in the queue, before any of its answer is sent."""

import math
from typing import Any

from fastapi import Request

from service.admission.pace import Size
from service.admission.queue import Admission
from service.admission.ticket import CLASSES, Want
from service.errors import BadRequest
from service.record import RECORD, current_record

TIMEOUT, PRIORITY = "x-modiste-timeout-s", "x-modiste-priority"
LONGEST_S = 86_400.0
_PRIORITIES = {name: priority for priority, name in CLASSES.items()}


async def admit(
    raw_request: Request,
    *,
    calls: int = 1,
    answers: int = 1,
    most: int | None = None,
    timeout_s: float | None = None,
) -> None:
    """Wait until the request may use the engine. Its model must be known by now.

    Args:
        calls: engine requests that it will make.
        answers: of each call.
        most: tokens of one answer.
        timeout_s: from its body; the header counts too, and the shorter one holds.

    Raises:
        Overloaded: it would wait too long, or waited so long.
        BadRequest: a header makes no sense.
    """
    record = current_record()
    if record is None:
        return
    admission: Admission = raw_request.app.state.modiste.admission
    headers = raw_request.headers
    record.priority = max(record.priority, _priority(headers.get(PRIORITY)))
    given = _timeout(headers.get(TIMEOUT))
    waits = [wait for wait in (given, timeout_s) if wait is not None]
    length = headers.get("content-length", "")
    body = int(length) if length.isdigit() else len(await raw_request.body())
    await admission.enter(
        record,
        Want(
            Size(body, max(1, calls) * max(1, answers), most),
            calls=max(1, calls),
            wait_s=min(waits, default=None),
            own=RECORD in raw_request.scope,
        ),
    )


async def admit_openai(request: Any, raw_request: Request) -> None:
    """The same for vLLM's types: of chats, completions and responses."""
    limits = (
        getattr(request, name, None)
        for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")
    )
    await admit(
        raw_request,
        calls=_prompts(getattr(request, "prompt", None)),
        answers=getattr(request, "n", None) or 1,
        most=next((limit for limit in limits if limit is not None), None),
    )


def _prompts(prompt: Any) -> int:
    """How many a completion has: a text or its token ids is one, a list of either several."""
    is_list = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return len(prompt) if is_list else 1


def _priority(name: str | None) -> int:
    if name is None:
        return _PRIORITIES["interactive"]
    found = _PRIORITIES.get(name.lower())
    if found is None:
        raise BadRequest(
            f"{PRIORITY} is {name[:40]!r}", param=PRIORITY, hint=f"one of {', '.join(_PRIORITIES)}"
        )
    return found


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_S:
        raise BadRequest(
            f"{TIMEOUT} is {text[:40]!r}", param=TIMEOUT,
            hint=f"give seconds, 0 to {LONGEST_S:g}",
        )  # fmt: skip
    return seconds
