"""What a request asks of the queue, as its route and its headers say."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry

from service import errors
from service.admission.entry import admit, admit_openai
from service.admission.ticket import Want
from service.auth import Authenticator
from service.errors import Overloaded
from service.inside import ask as ask_inside
from service.middleware import Bound, Bounds, Edge, Table
from service.record import PRIORITY_BATCH, PRIORITY_EVALUATION, PRIORITY_INTERACTIVE, Record
from service.telemetry import Metrics


class Queue:
    """Notes who comes, and refuses whom it shall."""

    def __init__(self) -> None:
        self.came: list[tuple[Record, Want]] = []
        self.refusal: Overloaded | None = None

    async def enter(self, record: Record, want: Want) -> None:
        self.came.append((record, want))
        if self.refusal is not None:
            raise self.refusal


def app_around(queue: Queue, **how: Any) -> Any:
    app = FastAPI()

    @app.post("/v1/generate")
    async def generate(raw_request: Request) -> dict[str, Any]:
        await admit(raw_request, **how)
        return {}

    @app.post("/v1/completions")
    async def completions(raw_request: Request) -> dict[str, Any]:
        await admit_openai(SimpleNamespace(**await raw_request.json()), raw_request)
        return {}

    app.state.modiste = SimpleNamespace(admission=queue)
    errors.install(app, {})
    app.add_middleware(
        Edge, table=Table.of(["/v1/generate", "/v1/completions"]),
        authenticator=Authenticator([]), metrics=Metrics(CollectorRegistry()),
        bounds=Bounds(Bound(10_000, "max_body_bytes"), {}),
    )  # fmt: skip
    return app


def post(queue: Queue, path: str = "/v1/generate", **how: Any) -> httpx.Response:
    sent = {key: how.pop(key) for key in ("headers", "json", "content") if key in how}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app_around(queue, **how))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, **sent)

    return asyncio.run(send())


def want_of(path: str = "/v1/generate", **how: Any) -> Want:
    queue = Queue()
    answer = post(queue, path, **how)
    assert answer.status_code == 200, answer.text
    return queue.came[0][1]


@pytest.mark.parametrize(
    ("header", "in_body", "waits"),
    [(None, None, None), ("5", None, 5.0), (None, 3.0, 3.0), ("5", 3.0, 3.0), ("0", 3.0, 0.0)],
)
def test_the_shorter_wait_holds(
    header: str | None, in_body: float | None, waits: float | None
) -> None:
    headers = {} if header is None else {"x-modiste-timeout-s": header}
    assert want_of(headers=headers, timeout_s=in_body).wait_s == waits


def test_a_list_counts_as_its_sequences_and_a_body_by_its_bytes() -> None:
    want = want_of(calls=3, answers=2, most=7, content=b"x" * 100)
    assert (want.calls, want.size.sequences, want.size.most, want.size.body) == (3, 6, 7, 100)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 60
        yield b"x" * 60

    assert want_of(content=pieces()).size.body == 120


@pytest.mark.parametrize(
    ("body", "calls", "sequences", "most"),
    [
        ({"messages": [], "n": 3, "max_tokens": 5}, 1, 3, 5),
        ({"messages": [], "max_completion_tokens": 4, "max_tokens": 5}, 1, 1, 4),
        ({"input": "a", "max_output_tokens": 6}, 1, 1, 6),
        ({"prompt": "a", "max_tokens": 0}, 1, 1, 0),
        ({"prompt": ["a", "b"], "n": 2, "max_tokens": None}, 2, 4, None),
        ({"prompt": [1, 2, 3]}, 1, 1, None),
        ({"prompt": [[1, 2], [3]]}, 2, 2, None),
        ({"prompt": []}, 1, 1, None),
    ],
)
def test_openais_requests_are_counted(
    body: dict[str, Any], calls: int, sequences: int, most: int | None
) -> None:
    want = want_of("/v1/completions", json=body)
    assert (want.calls, want.size.sequences, want.size.most) == (calls, sequences, most)


@pytest.mark.parametrize(
    ("given", "priority"),
    [
        (None, PRIORITY_INTERACTIVE), ("interactive", PRIORITY_INTERACTIVE),
        ("batch", PRIORITY_BATCH), ("Evaluation", PRIORITY_EVALUATION),
    ],
)  # fmt: skip
def test_a_header_lowers_the_class(given: str | None, priority: int) -> None:
    queue = Queue()
    post(queue, headers={} if given is None else {"x-modiste-priority": given})
    assert queue.came[0][0].priority == priority


def test_a_line_of_a_batch_is_the_servers_own_and_stays_in_its_class() -> None:
    queue = Queue()

    async def send() -> None:
        record = Record("r", "/v1/generate", priority=PRIORITY_BATCH)
        answer = await ask_inside(app_around(queue), "/v1/generate", b"{}", record)
        assert answer.status == 200

    asyncio.run(send())
    ((record, want),) = queue.came
    assert (record.priority, want.own) == (PRIORITY_BATCH, True)
    assert not want_of().own


def test_a_refusal_tells_when_to_come_again_and_how_the_queue_is() -> None:
    queue = Queue()
    queue.refusal = Overloaded("busy", hint="later", retry_after_s=7, queue={"queued": 3})
    answer = post(queue)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert json.loads(answer.text)["error"] == {
        "message": "busy", "type": "rate_limit_error", "param": None, "code": "overloaded",
        "hint": "later", "queue": {"queued": 3},
    }  # fmt: skip
