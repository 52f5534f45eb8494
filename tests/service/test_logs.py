"""Lines of the log: one object each, one a request, and never a secret."""

import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service import logs
from service.log_lines import JsonLines, TextLines
from service.logs import FIELDS, AccessLog, fields_of, known_secrets
from service.metering import Pass
from service.models import Resolved
from service.record import PRIORITY_BATCH, Record
from service.redaction import Secrets
from service.settings import Settings

KEY = "a-key-of-sixteen-characters"
ROOT = Path(__file__).parents[2]


@contextmanager
def lines_of(name: str, formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """What a logger says, all levels."""
    stream, logger = io.StringIO(), logging.getLogger(name)
    handler, level, propagate = logging.StreamHandler(stream), logger.level, logger.propagate
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


def finished(**more: Any) -> Record:
    version: Any = SimpleNamespace(name="one", number=3)
    record = Record("r1", "/v1/generate", project="ours", caller="key_1", task="generate", **more)
    record.status, record.asked = 200, "one@production"
    record.model = Resolved("one@3", "sha256:ab", "proved", version)
    record.prompt_tokens, record.cached_tokens, record.completion_tokens = 10, 0, 3
    record.first_token = record.started + 0.25
    record.passes = [
        Pass(record.started, record.started + 1, queued, 0.1, 0.8, 3) for queued in (0.01, 0.2)
    ]
    record.finish_reasons = ["stop", "length", "stop"]
    return record


def test_a_requests_line_says_who_asked_what_and_how_long_it_took() -> None:
    with lines_of("modiste.requests", JsonLines()) as said:
        AccessLog().observe(finished())
    line = json.loads(said.getvalue())

    assert line.pop("total_ms") >= 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "modiste.requests", "message": "POST /v1/generate 200",
        "request_id": "r1", "caller": "key_1",
        "project": "ours", "method": "POST", "route": "/v1/generate", "task": "generate",
        "model_asked": "one@production", "model": "one@3", "status": 200, "queued_ms": 200.0,
        "first_token_ms": 250.0, "prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 3,
        "finish_reason": "stop,length",
    }  # fmt: skip


def test_text_says_the_same() -> None:
    with lines_of("modiste.requests", TextLines(Secrets())) as said:
        AccessLog().observe(finished())
    (line,) = said.getvalue().splitlines()

    assert " INFO modiste.requests POST /v1/generate 200 request_id=r1 caller=key_1 " in line
    assert line.endswith("completion_tokens=3 finish_reason=stop,length")


def test_the_fields_are_documented() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    table = page[page.index("## Logs") : page.index("## Traces")]

    assert [name for name in FIELDS if f"`{name}`" not in table] == []


def test_the_wait_for_a_turn_is_part_of_the_wait() -> None:
    record = finished()
    record.queued_s = 1.5

    assert fields_of(record)["queued_ms"] == 1700


def test_no_wait_is_told_as_such() -> None:
    record = finished()
    record.passes = [Pass(record.started, record.started + 1, 0.0, 0.1, 0.8, 3)]

    assert fields_of(record)["queued_ms"] == 0


def test_a_refused_request_has_its_code_and_no_tokens() -> None:
    record = Record("r2", "/v1/generate", status=401, error_code="missing_api_key")

    assert fields_of(record).items() >= {"status": 401, "error_code": "missing_api_key"}.items()
    assert not {"prompt_tokens", "model", "task", "caller"} & fields_of(record).keys()


@pytest.mark.parametrize(
    "record",
    [
        Record("p", "/health/ready", status=200),
        Record("m", "/metrics", status=200),
        finished(priority=PRIORITY_BATCH),
    ],
)
def test_probes_and_lines_of_batches_are_for_debugging(record: Record) -> None:
    with lines_of("modiste.requests", JsonLines()) as said:
        AccessLog().observe(record)
    assert json.loads(said.getvalue())["level"] == "debug"


def test_the_callers_trace_is_named() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    told = finished(traceparent=f"00-{trace}-00f067aa0ba902b7-01")

    assert fields_of(told)["trace_id"] == trace
    assert "trace_id" not in fields_of(finished(traceparent="00-nonsense"))


def test_text_is_there_only_where_it_is_asked_for_and_then_redacted() -> None:
    record = finished()
    record.body = bytearray(b'{"prompt": "write to bob@example.com"}')
    with lines_of("modiste.requests", JsonLines()) as said:
        AccessLog().observe(record)
        AccessLog(Secrets().of_request).observe(record)
    without, with_text = said.getvalue().splitlines()

    assert "write to" not in without
    assert json.loads(with_text)["request"] == {"prompt": "write to [EMAIL]"}
    assert "bob@example.com" not in with_text


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_a_caller_wrote_makes_no_line_and_no_field(kind: logs.LogFormat) -> None:
    record = finished()
    record.asked = "x\n2026-01-01 ERROR modiste forged\u2028 status=500\x1b[31m"
    with lines_of("modiste.requests", logs.formatter(kind, Secrets())) as said:
        AccessLog().observe(record)
        logging.getLogger("modiste.requests").warning("no model %s", record.asked)
    first, *rest = said.getvalue().split("\n")

    assert len(rest) == 2
    assert rest[1] == ""
    assert "\x1b" not in said.getvalue()
    if kind == "text":  # quoted whole
        assert f"model_asked={record.asked!r} model=one@3" in first
    else:
        assert json.loads(first)["model_asked"] == record.asked


@pytest.mark.parametrize("kind", ["text", "json"])
def test_secrets_leave_messages_fields_and_exceptions(kind: logs.LogFormat) -> None:
    secrets = Secrets([KEY])
    with lines_of("modiste.test", logs.formatter(kind, secrets)) as said:
        logger = logging.getLogger("modiste.test")
        logger.info("sent %s", KEY, extra={"fields": {"model_asked": KEY}})
        try:
            raise ValueError(f"wrong: {KEY} postgresql://me:hunter2hunter2@db/x")
        except ValueError:
            logger.exception("failed")

    assert KEY not in said.getvalue()
    assert "hunter2" not in said.getvalue()
    assert "ValueError" in said.getvalue()


def test_an_exception_is_a_field_of_its_line() -> None:
    with lines_of("modiste.test", JsonLines()) as said:
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("modiste.test").exception("failed")
    (line,) = said.getvalue().splitlines()

    assert json.loads(line)["exception"].endswith("ValueError: broken")


def test_the_server_keeps_what_it_was_given_to_itself(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}-2\n")
    settings = Settings(
        api_keys=[KEY], api_keys_file=tmp_path / "keys",
        database_url="postgresql://me:hunter2%2Fhunter2@db/x",
    )  # fmt: skip
    environment = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI", "PGPASSWORD": "pgpgpgpgpg", "LANG": "C.UTF-8",
        "MODISTE_API_KEYS_FILE": "/etc/modiste/keys",
    }  # fmt: skip
    known = known_secrets(environment, settings)

    assert {KEY, f"{KEY}-2", "hunter2%2Fhunter2", "hunter2/hunter2"} <= known
    assert {"wJalrXUtnFEMI", "pgpgpgpgpg"} <= known
    assert not {"C.UTF-8", "/etc/modiste/keys"} & known


def test_vllm_is_told_to_write_such_lines_unless_it_was_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH", raising=False)
    assert logs.vllm_environment("text") == {}
    path = Path(logs.vllm_environment("json")["VLLM_LOGGING_CONFIG_PATH"])
    config = json.loads(path.read_text())
    logs._remove(path, os.getpid() + 1)
    assert path.exists()
    logs._remove(path, os.getpid())
    assert not path.exists()
    assert config["formatters"]["lines"]["()"] == f"{JsonLines.__module__}.{JsonLines.__name__}"
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/etc/mine.json")
    assert logs.vllm_environment("json") == {}


def test_text_has_one_line_for_each_message() -> None:
    with lines_of("modiste.test", TextLines(Secrets())) as said:
        logging.getLogger("modiste.test").info("one\ntwo")
    (line,) = said.getvalue().splitlines()

    assert line.endswith("INFO modiste.test one two")
