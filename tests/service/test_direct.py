"""Sound requests pass FastAPI by; what is wrong is told as by FastAPI."""

from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from service import errors
from service.body import JsonRoute
from service.direct import DirectRoute
from service.fields import CHAT
from service.guard import guarded
from service.settings import Settings
from service.well_typed import well_typed


class Body(BaseModel):
    model: str
    n: int = 1
    stop: list[str] = []


Read = Annotated[Body, well_typed(Body)]


def client(route_class: type[JsonRoute]) -> TestClient:
    app, router = FastAPI(), APIRouter(route_class=route_class)

    @router.post("/v1/chat/completions", dependencies=[guarded(CHAT)])
    async def answer(request: Read, raw_request: Request) -> Response:
        if request.model == "gone":
            return None  # type: ignore[return-value] # as a handler whose caller has gone
        return JSONResponse({"read": request.model_dump()})

    async def check(_: Any) -> None:
        pass

    app.include_router(router)
    app.state.modiste = SimpleNamespace(settings=Settings(), grammars=SimpleNamespace(check=check))
    errors.install(app, {})
    return TestClient(app, raise_server_exceptions=False)


SOUND: list[Any] = [{"model": "a"}, {"model": "a", "n": 2, "stop": ["x"]}]
WRONG: list[Any] = [
    {}, {"model": 1}, {"model": "a", "n": "x"}, {"model": "a", "priority": 1}, [], "a", 1, None,
    {"model": "a", "stop": [1]}, {"model": "a", "n": 10**6},
]  # fmt: skip


@pytest.mark.parametrize("body", SOUND + WRONG)
def test_answers_are_fastapis(body: Any) -> None:
    ours, fastapis = (
        client(kind).post("/v1/chat/completions", json=body) for kind in (DirectRoute, JsonRoute)
    )
    assert (ours.status_code, ours.json()) == (fastapis.status_code, fastapis.json())
    assert (ours.status_code == 200) is (body in SOUND)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"model": "a"'])
def test_what_is_no_json_is_told_as_by_fastapi(data: bytes) -> None:
    headers = {"content-type": "application/json"}
    ours, fastapis = (
        client(kind).post("/v1/chat/completions", content=data, headers=headers)
        for kind in (DirectRoute, JsonRoute)
    )
    assert (ours.status_code, ours.json()) == (fastapis.status_code, fastapis.json())
    assert ours.status_code == 400


def test_a_type_that_is_no_json_is_refused() -> None:
    told = client(DirectRoute).post("/v1/chat/completions", content=b"model=a")
    assert told.status_code == 415


def test_nothing_is_solved_for_a_sound_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def solve(**_: Any) -> None:
        raise AssertionError("FastAPI was asked")

    monkeypatch.setattr("fastapi.routing.solve_dependencies", solve)
    told = client(DirectRoute).post("/v1/chat/completions", json={"model": "a"})
    assert told.json() == {"read": {"model": "a", "n": 1, "stop": []}}


def test_a_caller_who_has_gone_gets_nothing() -> None:
    told = client(DirectRoute).post("/v1/chat/completions", json={"model": "gone"})
    assert (told.status_code, told.content) == (200, b"")
