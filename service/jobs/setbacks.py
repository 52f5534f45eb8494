"""Jobs that could not be gone on with for a reason that passes, and which reasons do."""

import errno
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from time import monotonic

logger = logging.getLogger("modiste.worker")

PAUSE_S, LONGEST_PAUSE_S = 30.0, 300.0
"""Before such a job is begun here again; doubled from one time to the next."""
_FORGOTTEN_S = 3600.0


@dataclass(slots=True)
class Setbacks:
    """Those of one worker."""

    owed: dict[str, str | None] = field(default_factory=dict)
    """Jobs that are in no hands and to be given back, and why, to be told."""
    _pauses: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each job how long the last pause is, seconds, and its end, `monotonic`."""

    def owe(self, job: str, why: str | None = None) -> None:
        """A job is to be given back as soon as that can be done."""
        self.owed[job] = why

    def settle(self, job: str) -> None:
        """It was, or is in some hands."""
        self.owed.pop(job, None)

    def pause(self, job: str) -> None:
        """Let a job be for a while."""
        before = self._pauses.get(job)
        length = PAUSE_S if before is None else min(2 * before[0], LONGEST_PAUSE_S)
        self._pauses[job] = (length, monotonic() + length)

    def paused(self) -> Collection[str]:
        """Jobs that are not to be begun yet."""
        now = monotonic()
        for job, (_, until) in list(self._pauses.items()):
            if now > until + _FORGOTTEN_S:
                del self._pauses[job]
        return [job for job, (_, until) in self._pauses.items() if now < until]


def in_words(error: Exception) -> str:
    """An error as a caller may read it: without places on this machine."""
    if isinstance(error, OSError):
        return error.strerror or "the worker's machine or network failed"
    return str(getattr(error, "message", error))


def tell_of(error: Exception, what: str) -> None:
    if passes(error):
        logger.warning("%s: %s", what, error)
    else:
        logger.error("%s", what, exc_info=error)


def passes(error: Exception) -> bool:
    """Whether an error says nothing of the job at which it came, such as a full disk."""
    if isinstance(error, OSError):
        return error.errno != errno.E2BIG  # what the job asks for is too long, and stays so
    return bool(getattr(error, "retryable", False))
