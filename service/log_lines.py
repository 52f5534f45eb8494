"""How a line of the log looks. vLLM's processes import this, so it imports little."""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from service.redaction import Secrets

_ENCODE = json.JSONEncoder(ensure_ascii=False, default=str).encode
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER MESSAGE`; a caller's text can't begin a line of its own."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._secrets = secrets

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = _CONTROL.sub(" ", record.message.replace("\n", " "))
        line = super().formatMessage(record)
        fields = getattr(record, "fields", {}).items()
        return " ".join((line, *(f"{name}={_quoted(value)}" for name, value in fields)))

    def format(self, record: logging.LogRecord) -> str:
        return self._secrets.out_of(super().format(record))


def _quoted(value: Any) -> str:
    """So that what a caller wrote can't look like a field of ours."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


class JsonLines(logging.Formatter):
    """One object a line."""

    def __init__(self, secrets: Secrets | None = None) -> None:
        super().__init__()
        self._secrets = Secrets() if secrets is None else secrets

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        told: dict[str, Any] = {"message": record.getMessage()}
        if record.name.startswith("vllm"):
            line["process"] = getattr(record, "vllm_process_name", record.processName)
        told |= getattr(record, "fields", {})
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return _ENCODE(line | self._secrets.out_of_fields(told))
