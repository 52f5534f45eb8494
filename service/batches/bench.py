"""What all batches of a server share."""

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from service.batches.gate import Gate
from service.batches.parts import Parts
from service.batches.queue import Batches
from service.children import Children
from service.ending import Ending
from service.files import Files
from service.inside import Answer
from service.keys import Keys
from service.record import Record
from service.telemetry import Metrics

Ask = Callable[[str, bytes, Record], Awaitable[Answer]]


def lease_threads() -> ThreadPoolExecutor:
    """Work that hangs in the file store must not hold up leases."""
    return ThreadPoolExecutor(2, "modiste-lease")


@dataclass(frozen=True, slots=True)
class Bench:
    """The parts of a server that batches need.

    Attributes:
        dead: whether the engine has stopped.
        leasing: where leases are renewed.
    """

    batches: Batches
    files: Files
    parts: Parts
    children: Children
    keys: Keys
    gate: Gate
    ask: Ask
    ending: Ending
    dead: Callable[[], bool]
    server: str
    metrics: Metrics
    leasing: ThreadPoolExecutor = field(default_factory=lease_threads)
