"""What the server says, as text or as JSON: one object a line, and one line a request.

A line of JSON has `time`, `level`, `logger` and `message`, for a request also the fields of
`FIELDS`. Secrets are taken out of every line, whoever wrote it.
"""

import atexit
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Literal
from urllib.parse import unquote

from service.log_lines import JsonLines, TextLines
from service.record import PRIORITY_INTERACTIVE, Record
from service.redaction import Secrets
from service.settings import Settings

LogFormat = Literal["text", "json"]
FIELDS = (
    "request_id", "trace_id", "caller", "project", "method", "route", "task", "model_asked",
    "model", "status", "error_code", "queued_ms", "first_token_ms", "total_ms", "prompt_tokens",
    "cached_tokens", "completion_tokens", "finish_reason",
)  # fmt: skip
"""Of a request's line; those that are not known are left out."""
QUIET = frozenset({"/health/live", "/health/ready", "/metrics", "/version"})
"""Asked every few seconds by machines: their lines are for debugging."""
_SECRET_VARIABLE = re.compile(r"(?i)password|passwd|secret|token|api_?key|access_?key|credential")
_PLACES = ("_FILE", "_PATH", "_DIR", "_URL")
"""Ends of names of variables that say where a secret lies."""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_LONGEST_NAME = 200

requests = logging.getLogger("modiste.requests")


def known_secrets(environment: Mapping[str, str], settings: Settings | None = None) -> set[str]:
    """What a process was given to keep to itself: keys, and passwords of databases and stores."""
    secrets = {
        value
        for name, value in environment.items()
        if _SECRET_VARIABLE.search(name) and not name.endswith(_PLACES)
    }
    urls = [environment.get("MODISTE_DATABASE_URL", "")]
    if settings is not None:
        secrets |= {*settings.keys()}
        if settings.database_url is not None:
            urls.append(settings.database_url.get_secret_value())
    for url in urls:
        password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
        secrets |= {password, unquote(password)}
    return secrets


def formatter(kind: LogFormat, secrets: Secrets) -> logging.Formatter:
    return JsonLines(secrets) if kind == "json" else TextLines(secrets)


def begin(kind: LogFormat, level: str, secrets: Secrets) -> None:
    """Say our own lines to stderr; as JSON also those of libraries and Python's warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(kind, secrets))
    logger = logging.getLogger("modiste")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    if kind == "json":
        logging.getLogger().addHandler(handler)
        logging.captureWarnings(True)


def begin_worker(kind: LogFormat, level: str) -> None:
    """The same for a worker, whose libraries speak as loudly as it does."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(kind, Secrets(known_secrets(os.environ))))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def vllm_environment(kind: LogFormat) -> dict[str, str]:
    """What lets vLLM, in all of its processes, write lines as ours; the operator's own goes first.

    vLLM reads it from a file when it is imported, before it has parsed anything.
    """
    if kind == "text" or "VLLM_LOGGING_CONFIG_PATH" in os.environ:
        return {}
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    stream = os.environ.get("VLLM_LOGGING_STREAM", "ext://sys.stdout")
    told = {"handlers": ["lines"], "propagate": False}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": "service.log_lines.JsonLines"}},
        "handlers": {
            "lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": stream}
        },
        "loggers": {"vllm": {**told, "level": level}, "uvicorn": told},
    }
    descriptor, name = tempfile.mkstemp(prefix="modiste-logging-", suffix=".json")
    with os.fdopen(descriptor, "w") as file:
        json.dump(config, file)
    atexit.register(_remove, Path(name), os.getpid())
    return {"VLLM_LOGGING_CONFIG_PATH": name}


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not a child that was forked
        with suppress(OSError):
            path.unlink()


class AccessLog:
    """Says one line for each request, at its end.

    Args:
        text: what a request's body becomes in its line; None: it is left out.
    """

    def __init__(self, text: Callable[[bytes], Any] | None = None) -> None:
        self._text = text

    def observe(self, record: Record) -> None:
        """Say a finished request."""
        # a batch has a line for each of its own in its files
        quiet = record.route in QUIET or record.priority != PRIORITY_INTERACTIVE
        level = logging.DEBUG if quiet else logging.INFO
        if not requests.isEnabledFor(level):
            return
        fields = fields_of(record)
        if self._text is not None and record.task and record.body:
            fields["request"] = self._text(bytes(record.body))
        told = (record.method, record.route, record.status)
        # `log` would look through the stack for where the line is said, for each request
        line = requests.makeRecord(
            requests.name, level, __file__, 0, "%s %s %d", told, None, extra={"fields": fields}
        )
        requests.handle(line)


def fields_of(record: Record) -> dict[str, Any]:
    """What is known of a finished request; names as in FIELDS."""
    now = perf_counter()
    first, passes = record.first_token, record.passes
    known = (
        record.request_id, record.trace_id or _trace_of(record.traceparent), record.caller,
        record.project, record.method, record.route, record.task, record.asked[:_LONGEST_NAME],
        "" if record.model is None else record.model.reference, record.status, record.error_code,
        _ms(record.queued_s + max(one.queued_s for one in passes)) if passes else None,
        None if first is None else _ms(first - record.started), _ms(now - record.started),
        record.prompt_tokens, record.cached_tokens, record.completion_tokens,
        ",".join(dict.fromkeys(record.finish_reasons)),
    )  # fmt: skip
    without = ("prompt_tokens", "cached_tokens", "completion_tokens") if not record.task else ()
    return {
        name: value
        for name, value in zip(FIELDS, known, strict=True)
        if value not in (None, "") and name not in without
    }


def _trace_of(traceparent: str) -> str:
    """The trace that the caller told, also where this server sends none."""
    parts = _TRACEPARENT.fullmatch(traceparent)
    return parts[1] if parts is not None else ""


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
