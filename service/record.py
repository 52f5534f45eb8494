"""What is known of the request that is being answered.

One record a request travels in a context variable from the edge to the engine and
back, so that metrics, logs, receipts and holds on versions need no extra arguments.
"""

from asyncio import Semaphore
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.admission.ticket import Ticket
    from service.models import Resolved
    from service.trials import Tried


RECORD = "modiste.record"
"""Key of a request's ASGI scope: the server's own requests bring their record."""

PRIORITY_INTERACTIVE, PRIORITY_BATCH, PRIORITY_EVALUATION, PRIORITY_PROOF = 0, 10, 20, 100
"""In the engine, the smallest first."""


@dataclass(slots=True)
class Record:
    """Times are `perf_counter` seconds."""

    request_id: str
    route: str
    project: str = "default"
    caller: str = ""
    task: str = ""
    priority: int = PRIORITY_INTERACTIVE
    sequences: Semaphore | None = None
    """So many of its sequences may be in the engine at once; None: all."""
    ticket: "Ticket | None" = None
    """Its place in the queue before the engine, or within."""
    queued_s: float = 0.0
    """So long it waited there."""
    sticky_key: str = ""
    """The caller's own: equal keys are answered by the same side of a canary."""
    model: "Resolved | None" = None
    started: float = field(default_factory=perf_counter)
    first_token: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's: read from the prefix cache."""
    completion_tokens: int = 0
    tried: "Tried | None" = None
    """The side of a canary that the request fell to."""
    answered: bool = False
    """The engine finished an answer."""
    aborted: bool = False
    """The engine let go of it: its answer, whatever status it has, is none."""
    failed: bool = False
    """The engine failed, maybe after the status was sent."""
    status: int = 0
    error_code: str | None = None
    on_end: list[Callable[[], None]] = field(default_factory=list)

    def finish(self) -> None:
        """Let go of what the request held."""
        while self.on_end:
            self.on_end.pop()()


_current: ContextVar[Record | None] = ContextVar("modiste_record", default=None)


def current_record() -> Record | None:
    return _current.get()


def set_record(record: Record) -> None:
    """For the life of the current task and those that it starts."""
    _current.set(record)


def current_caller() -> str:
    """Who asks; empty where it is no request."""
    record = current_record()
    return "" if record is None else record.caller


def current_project() -> str:
    """The caller's project. Raises RuntimeError outside of a request."""
    record = current_record()
    if record is None:
        raise RuntimeError("no request is being answered")
    return record.project
