"""What is known of the request that is being answered.

One record a request travels in a context variable from the edge to the engine and
back, so that metrics, logs, receipts and holds on versions need no extra arguments.
"""

from asyncio import Semaphore
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.admission.ticket import Ticket
    from service.metering import Pass
    from service.models import Resolved
    from service.scopes import Scope
    from service.trials import Tried


RECORD = "modiste.record"
"""Key of a request's ASGI scope: the server's own requests bring their record."""

PRIORITY_INTERACTIVE, PRIORITY_BATCH, PRIORITY_EVALUATION, PRIORITY_PROOF = 0, 10, 20, 100
"""In the engine, the smallest first."""
PRIORITY_WATCHDOG = -100
"""What waits behind others says nothing of the engine."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of answering a request, in `perf_counter` seconds."""

    name: str
    started: float
    ended: float
    outside: bool = False
    """Before the request was looked at as one for a model."""


MOST_STEPS = 64


@dataclass(slots=True)
class Record:
    """Times are `perf_counter` seconds."""

    request_id: str
    route: str
    project: str = "default"
    caller: str = ""
    scopes: "frozenset[Scope]" = frozenset()
    """Of the caller's key."""
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
    asked: str = ""
    """The model as the request names it; empty where it names none."""
    model: "Resolved | None" = None
    started: float = field(default_factory=perf_counter)
    first_token: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's: read from the prefix cache."""
    completion_tokens: int = 0
    passes: "list[Pass]" = field(default_factory=list)
    """Of its sequences through the engine, each once it is finished."""
    finish_reasons: list[str] = field(default_factory=list)
    """Why its answers ended, as OpenAI names it."""
    tried: "Tried | None" = None
    """The side of a canary that the request fell to."""
    answered: bool = False
    """The engine finished an answer."""
    aborted: bool = False
    """The engine let go of it: its answer, whatever status it has, is none."""
    again: bool = False
    """A line of a batch that left before its answer; it is asked once more."""
    failed: bool = False
    """The engine failed, maybe after the status was sent."""
    status: int = 0
    error_code: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    """Of its answer, beside those of the route."""
    on_enter: Callable[[], None] | None = None
    """Called whenever a sequence of it enters the engine."""
    on_end: list[Callable[[], None]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    """As they ended."""
    method: str = "POST"
    traceparent: str = ""
    tracestate: str = ""
    """The caller's own trace, as its headers have it."""
    trace_id: str = ""
    """In hex, where it is traced."""
    body: bytearray | None = None
    """As far as it is logged."""

    def finish(self) -> None:
        """Let go of what the request held."""
        while self.on_end:
            self.on_end.pop()()

    def step(self, name: str, started: float, *, outside: bool = False) -> None:
        """Note a part that ends now."""
        if len(self.steps) < MOST_STEPS:
            self.steps.append(Step(name, started, perf_counter(), outside))


_current: ContextVar[Record | None] = ContextVar("modiste_record", default=None)


def current_record() -> Record | None:
    return _current.get()


def set_record(record: Record) -> None:
    """For the life of the current task and those that it starts."""
    _current.set(record)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Note how long a part of answering the current request takes, if there is one."""
    started = perf_counter()
    try:
        yield
    finally:
        if (record := current_record()) is not None:
            record.step(name, started)


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
