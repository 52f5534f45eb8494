"""The edge around a small app."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from service.auth import Authenticator
from service.errors import Unauthenticated
from service.middleware import Edge, Table
from service.models import Resolved
from service.record import current_record
from service.telemetry import Metrics

KEY = "a-key-of-sixteen-characters"
TABLE = Table.of(["/v1/generate", "/v1/models/{model:path}", "/health/live"])


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


def client(app: App, keys: list[str] | None = None, limit: int = 1000) -> httpx.AsyncClient:
    edge = Edge(
        app, table=TABLE, authenticator=Authenticator(keys or []),
        metrics=Metrics(CollectorRegistry()), max_body_bytes=limit,
    )  # fmt: skip
    transport = httpx.ASGITransport(edge, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


def post(app: App, path: str = "/v1/generate", **more: Any) -> httpx.Response:
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
