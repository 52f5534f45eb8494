"""Child processes: what needs the trainer's libraries is done by one, at low priority."""

import asyncio
import ctypes
import json
import logging
import os
import sys
from contextlib import suppress
from typing import Any

from adapters.audit import current_actor, environment_of
from service.errors import BadRequest, NotReady, ServiceError

logger = logging.getLogger("modiste.children")

NICENESS = 10
"""The engine comes first where they share cores."""
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int) -> None:
    """Let this process get a signal when the thread that started it has ended (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


class Children:
    """One child at a time: each takes as much memory as the base model."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def run(self, module: str, *arguments: str) -> dict[str, Any]:
        """What `python -m MODULE ARGUMENTS --json` prints.

        Raises:
            BadRequest: it refused its input, in its own words.
            NotReady: it failed.
        """
        async with self._one:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments, "--json",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=os.environ | environment_of(current_actor()),
            )  # fmt: skip
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, child.pid, NICENESS)
            try:
                printed, told = await child.communicate()
            except asyncio.CancelledError:
                with suppress(ProcessLookupError):
                    child.terminate()
                await child.wait()
                raise
        lines = told.decode(errors="replace").strip().splitlines()
        logger.info("%s ended with %s: %s", module, child.returncode, " | ".join(lines[-5:]))
        return _answer(printed, lines, child.returncode or 0)


def refusal(error: ServiceError) -> str:
    """What a child prints that refuses its input; it then ends with 2."""
    told = {"message": error.message, "param": error.param, "hint": error.hint, "code": error.code}
    return json.dumps({"error": told})


def _answer(printed: bytes, told: list[str], code: int) -> dict[str, Any]:
    lines = printed.decode(errors="replace").strip().splitlines()
    answer: Any = None
    with suppress(ValueError):
        answer = json.loads(lines[-1]) if lines else None
    if code == 0 and isinstance(answer, dict):
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    if error is not None:
        kind = BadRequest if code == 2 else NotReady
        raise kind(
            str(error["message"]), param=error["param"], hint=str(error["hint"] or ""),
            code=str(error["code"]),
        )  # fmt: skip
    if code == 2 and told:  # of its command line
        raise BadRequest(told[-1].partition("error: ")[2] or told[-1])
    raise NotReady(
        f"the work ended with {code}", code="child_failed",
        hint="the server's log has the reason; check that memory is left",
    )  # fmt: skip
