"""How a batch ends, and why it failed."""

from dataclasses import dataclass
from typing import Any

from service.batches.queue import FAILED, MOST_LOST
from service.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Verdict:
    """A status that lasts; `error` says why the batch failed as a whole."""

    status: str
    error: dict[str, Any] | None = None

    @classmethod
    def of(cls, error: ServiceError) -> "Verdict":
        return cls(FAILED, _error(error.code, error.message, error.param))


def _error(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": None}


LOST = _error("servers_lost", f"{MOST_LOST} servers ended one after the other at this batch")
REVOKED = _error("key_revoked", "the key that asked for this batch was revoked or has expired")
