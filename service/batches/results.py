"""What comes of a line: OpenAI's line of an output file or a file of errors."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from service.batches.lines import Fault
from service.inside import Answer

OUTPUT, ERROR = "o", "e"


@dataclass(frozen=True, slots=True)
class Result:
    """A line's line: of the output file, or of that of errors."""

    number: int
    kind: str
    text: bytes
    """JSON in ASCII, which says a lone surrogate too, and one line of it."""

    @classmethod
    def of(cls, number: int, kind: str, told: dict[str, Any]) -> "Result":
        return cls(number, kind, json.dumps(told).encode())

    def line(self) -> bytes:
        """As parts have it: `NUMBER<tab>KIND<tab>JSON`."""
        return b"%d\t%s\t%s\n" % (self.number, self.kind.encode(), self.text)


@dataclass(frozen=True, slots=True)
class Teller:
    """Makes the results of one batch; equal ones for equal lines, whoever makes them."""

    batch: str

    def answered(self, number: int, custom_id: str, answer: Answer) -> Result:
        """Raises ValueError: the answer is no JSON."""
        response = {
            "status_code": answer.status, "request_id": answer.headers.get("x-request-id", ""),
            "body": json.loads(answer.body),
        }  # fmt: skip
        if (receipt := answer.headers.get("x-modiste-receipt")) is not None:
            response["receipt"] = receipt
        kind = OUTPUT if answer.status == 200 else ERROR
        return Result.of(number, kind, self._told(number, custom_id, response, None))

    def refused(self, fault: Fault) -> Result:
        message = f"line {fault.number}: {fault.message}"
        return self._error(fault.number, fault.custom_id, fault.code, message, fault.param)

    def failed(self, number: int, custom_id: str | None) -> Result:
        message = "the server failed on this line; its log has the reason"
        return self._error(number, custom_id, "line_failed", message)

    def expired(self, number: int, custom_id: str) -> Result:
        message = "this request could not be executed before the completion window expired"
        return self._error(number, custom_id, "batch_expired", message)

    def _error(
        self, number: int, custom_id: str | None, code: str, message: str, param: str | None = None
    ) -> Result:
        error = {"code": code, "message": message, "param": param, "line": number}
        return Result.of(number, ERROR, self._told(number, custom_id, None, error))

    def _told(
        self, number: int, custom_id: str | None, response: dict[str, Any] | None, error: Any
    ) -> dict[str, Any]:
        id_ = sha256(f"{self.batch}\0{number}".encode()).hexdigest()[:24]
        return {
            "id": f"batch_req_{id_}", "custom_id": custom_id, "response": response, "error": error
        }  # fmt: skip
