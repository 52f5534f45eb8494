"""The edge around a small app."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.auth import Authenticator
from service.errors import Unauthenticated
from service.middleware import Bound, Bounds, Edge, Table
from service.models import Resolved
from service.record import Record, current_record
from service.telemetry import Metrics

KEY = "a-key-of-sixteen-characters"
UPLOAD = "/v1/adapters/import"
TABLE = Table.of(["/v1/generate", UPLOAD, "/v1/models/{model:path}", "/health/live"])


class App:
    """Answers with what it was sent; notes the record and when it was let go."""

    def __init__(self, status: int = 200, crash: bool = False) -> None:
        self.status, self.crash = status, crash
        self.released = 0
        self.headers: list[tuple[bytes, bytes]] = []

    def _release(self) -> None:
        self.released += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = current_record()
        assert record is not None
        record.model = Resolved("x@1", "sha256:ab", "proved")
        record.on_end.append(self._release)
        self.headers = scope["headers"]
        if self.crash:
            raise RuntimeError("broken")
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def edge_around(
    app: ASGIApp, keys: list[str] | None = None, limit: int = 1000,
    metrics: Metrics | None = None, wait_s: float = 30.0,
) -> Edge:  # fmt: skip
    return Edge(
        app, table=TABLE, authenticator=Authenticator(keys or []),
        metrics=metrics or Metrics(CollectorRegistry()),
        bounds=Bounds(
            Bound(limit, "max_body_bytes"), {UPLOAD: Bound(5 * limit, "max_upload")}, wait_s
        ),
    )  # fmt: skip


def client(app: ASGIApp, keys: list[str] | None = None, limit: int = 1000) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(edge_around(app, keys, limit), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


def post(app: ASGIApp, path: str = "/v1/generate", **more: Any) -> httpx.Response:
    keys, limit = more.pop("keys", None), more.pop("limit", 1000)

    async def send() -> httpx.Response:
        async with client(app, keys, limit) as http:
            return await http.post(path, **more)

    answer: httpx.Response = run(send)
    return answer


def test_an_answer_carries_its_receipt_and_the_hold_ends() -> None:
    app = App()
    answer = post(app, headers={"x-request-id": "mine"})

    assert answer.headers["x-modiste-receipt"] == "version=x@1; digest=sha256:ab; proof=proved"
    assert answer.headers["x-request-id"] == "mine"
    assert app.released == 1


def test_a_failure_carries_no_receipt() -> None:
    assert "x-modiste-receipt" not in post(App(status=400)).headers


def test_the_hold_ends_when_the_app_breaks() -> None:
    app = App(crash=True)
    post(app)

    assert app.released == 1


def test_paths_outside_the_table_never_reach_the_app() -> None:
    app = App()

    for path in ("/v1", "/v1/generate/", "/v1/models", "/docs", "/v1/models/a/b"):
        assert post(app, path).status_code == 404
    assert app.released == 0
    assert post(app, "/v1/models/a@1").status_code == 200


def test_keys_are_asked_for_everywhere_but_where_probes_look() -> None:
    app = App()

    assert post(app, keys=[KEY]).status_code == 401
    assert post(app, keys=[KEY], headers={"authorization": "Bearer wrong"}).status_code == 401
    assert post(app, "/nowhere", keys=[KEY]).status_code == 401  # tells strangers nothing
    assert post(app, keys=[KEY], headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    assert post(app, "/health/live", keys=[KEY]).status_code == 200


def test_a_body_that_tells_its_length_is_refused_before_it_is_read() -> None:
    app = App()
    answer = post(app, content=b"x" * 2000)

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert app.released == 0


def test_a_route_may_have_a_bound_of_its_own() -> None:
    assert post(App(), UPLOAD, content=b"x" * 4000).status_code == 200
    answer = post(App(), UPLOAD, content=b"x" * 6000)
    assert answer.status_code == 413
    assert "max_upload" in answer.json()["error"]["hint"]


def test_a_body_that_tells_no_length_is_stopped_on_its_way() -> None:
    app = FastAPI()

    @app.post("/v1/generate")
    async def generate(body: dict[str, Any]) -> dict[str, Any]:
        return body

    errors.install(app, {})

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"text": "'
        for _ in range(50):
            yield b"x" * 100

    answer = post(app, content=pieces())
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def slowly(pieces: int, pause_s: float, wait_s: float, path: str = "/v1/generate") -> Any:
    """The answer to a body in pieces of 100 bytes."""

    async def send() -> Any:
        sent: list[Message] = []
        left = pieces

        async def receive() -> Message:
            nonlocal left
            await asyncio.sleep(pause_s)
            left -= 1
            return {"type": "http.request", "body": b"x" * 100, "more_body": left > 0}

        async def note(message: Message) -> None:
            sent.append(message)

        edge = edge_around(App(), limit=10_000, wait_s=wait_s)
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        await edge(scope, receive, note)
        return sent

    return run(send)


def test_a_body_that_takes_too_long_is_a_408_and_the_connection_ends() -> None:
    start, body = slowly(pieces=1000, pause_s=0.02, wait_s=0.1)
    assert (start["status"], b"request_timeout" in body["body"]) == (408, True)
    assert (b"connection", b"close") in start["headers"]


def test_a_body_that_stops_is_a_408() -> None:
    start, body = slowly(pieces=2, pause_s=3600, wait_s=0.1)
    assert start["status"] == 408
    assert b"body_wait_s" in body["body"]


def test_a_body_that_comes_in_time_passes() -> None:
    assert slowly(pieces=5, pause_s=0.01, wait_s=2)[0]["status"] == 200


@pytest.mark.parametrize("given", ["a b", "x" * 129, "é", "<script>", ""])
def test_a_hostile_request_id_is_replaced(given: str) -> None:
    sent = [(b"x-request-id", given.encode())]

    assert re.fullmatch("[0-9a-f]{32}", post(App(), headers=sent).headers["x-request-id"])


def test_a_refused_request_has_an_id_too() -> None:
    assert (
        post(App(), "/nowhere", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    )


def test_the_hold_ends_when_the_caller_goes_away() -> None:
    released: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record = current_record()
        assert record is not None
        record.on_end += [lambda: released.append("one"), lambda: released.append("two")]
        await asyncio.sleep(60)

    async def leave() -> None:
        async with client(app) as http:
            asking = asyncio.create_task(http.post("/v1/generate"))
            await asyncio.sleep(0.01)
            assert released == []
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    run(leave)
    assert sorted(released) == ["one", "two"]


def test_requests_at_once_have_records_of_their_own() -> None:
    seen: dict[str, str] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before = current_record()
        await asyncio.sleep(0.001)
        after = current_record()
        assert before is after is not None
        seen[dict(scope["headers"])[b"x-request-id"].decode()] = after.request_id
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def many() -> None:
        async with client(app) as http:
            names = [f"r{number}" for number in range(20)]
            asks = (http.post("/v1/generate", headers={"x-request-id": name}) for name in names)
            await asyncio.gather(*asks)

    run(many)
    assert seen == {f"r{number}": f"r{number}" for number in range(20)}


def test_a_web_socket_is_closed_before_the_app_hears_of_it() -> None:
    app, sent = App(), []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    run(lambda: edge_around(app)({"type": "websocket", "path": "/v1/generate"}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert app.headers == []


def test_what_the_edge_refuses_is_counted_by_its_code() -> None:
    metrics = Metrics(CollectorRegistry())

    async def ask() -> None:
        edge = edge_around(App(), [KEY], metrics=metrics)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(edge), base_url="http://t"
        ) as http:
            await http.post("/v1/generate")
            await http.get("/nowhere", headers={"authorization": f"Bearer {KEY}"})

    run(ask)

    def count(route: str, code: str) -> float | None:
        labels = {"route": route, "code": code}
        return metrics.registry.get_sample_value("modiste_errors_total", labels)

    assert count("/v1/generate", "missing_api_key") == 1
    assert count("unknown", "unknown_url") == 1  # strangers' paths make no series
    assert metrics.registry.get_sample_value("modiste_requests_in_flight") == 0


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v1/generate", "/v1/generate"),
        ("/v1/models/x@sha256:ab", "/v1/models/{model:path}"),
        ("/v1/models/", None), ("/v1/models/a/b", None), ("/v1/Generate", None),
        ("/v1/generate/x", None), ("//v1/generate", None), ("", None),
    ],
)  # fmt: skip
def test_a_path_is_in_the_table_or_not(path: str, template: str | None) -> None:
    assert TABLE.match(path) == template


def test_headers_that_steer_the_engine_are_taken_away() -> None:
    app = App()
    post(app, headers={"X-Vllm-Priority": "-9", "X-data-parallel-rank": "1", "x-other": "y"})

    names = {name for name, _ in app.headers}
    assert b"x-other" in names
    assert not names & {b"x-vllm-priority", b"x-data-parallel-rank"}


def test_a_callers_name_does_not_show_its_key() -> None:
    caller = Authenticator([KEY]).caller(f"bearer {KEY}")

    assert KEY not in caller.name
    for header in (None, "", KEY, "Basic x", "Bearer ", f"Bearer {KEY}x"):
        with pytest.raises(Unauthenticated):
            Authenticator([KEY]).caller(header)


def test_the_record_knows_the_method_the_trace_and_how_long_the_key_took() -> None:
    app, seen = App(), list[Record]()
    edge = Edge(
        app, table=TABLE, authenticator=Authenticator([]), metrics=Metrics(CollectorRegistry()),
        bounds=Bounds(Bound(1000, "max_body_bytes"), {}), watchers=(seen.append,),
    )  # fmt: skip

    async def ask() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(edge), base_url="http://t"
        ) as http:
            await http.delete(
                "/v1/models/a@1", headers={"traceparent": "00-ab", "tracestate": "x=1"}
            )

    run(ask)
    (record,) = seen
    assert (record.method, record.traceparent, record.tracestate) == ("DELETE", "00-ab", "x=1")
    (step,) = record.steps
    assert (step.name, step.outside) == ("authenticate", True)
    assert record.started <= step.started <= step.ended
