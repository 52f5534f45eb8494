"""What a JSON body may be."""

import asyncio
import json
import math
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.body import MAX_DEPTH, MAX_VALUES, check_json, parse_once
from service.errors import BadRequest
from tests.service.tasks.fake import FakeEngine, make_app, post_raw
from tests.service.test_responses import Handler, app_around

SOUND = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)  # fmt: skip


def asked(body: bytes) -> httpx.Response:
    return post_raw(make_app(FakeEngine()), "/v1/generate", body)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@given(SOUND)
def test_any_sound_json_passes(value: Any) -> None:
    check_json(value)


@given(SOUND, st.sampled_from([math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, "\ud800"]))
def test_a_value_that_no_field_holds_is_found_wherever_it_is(value: Any, bad: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        check_json({"one": value, "other": [value, {"place": bad}]})
    assert caught.value.param == "other.1.place"


def test_a_key_is_text_too() -> None:
    with pytest.raises(BadRequest) as caught:
        check_json({"a": {"\udfff": 1}})
    assert caught.value.param == "a"


def test_depth_is_bounded() -> None:
    check_json(nested(MAX_DEPTH))
    with pytest.raises(BadRequest, match="levels deep"):
        check_json(nested(MAX_DEPTH + 1))


def test_the_number_of_values_is_bounded() -> None:
    with pytest.raises(BadRequest, match="values"):
        check_json({"a": [[0] * MAX_VALUES, 0]})


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_body_of_nothing_but_depth_is_a_400_at_once(opening: bytes) -> None:
    begun = time.monotonic()
    answer = asked(b'{"prompt": ' + opening * 2_000_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    answer = asked(json.dumps({"prompt": "a", "json_schema": {"a": nested(400)}}).encode())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "body", [b'{"prompt": "\xff"}', b'\x80', b'{"prompt": "\xed\xa0\x80"}', b'\xc0\xaf{"a": 1}']
)  # fmt: skip
def test_a_body_that_is_not_utf_8_is_a_400(body: bytes) -> None:
    assert asked(body).status_code == 400


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("application/json", 200), ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200), ("APPLICATION/JSON", 200), ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415), ("application/xml", 415), ("json", 415),
        (None, 415),
    ],
)  # fmt: skip
def test_a_body_says_that_it_is_json(media: str | None, status: int) -> None:
    answer = send(make_app(FakeEngine()), "/v1/generate", b'{"prompt": "a"}', media)
    assert answer.status_code == status, answer.text
    if status == 415:
        assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_openais_routes_ask_for_json_too() -> None:
    answer = send(app_around(Handler()), "/v1/responses", b'{"model": "x", "input": "a"}', None)
    assert (answer.status_code, answer.json()["error"]["type"]) == (415, "invalid_request_error")


def send(app: Any, path: str, body: bytes, media: str | None) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {} if media is None else {"content-type": media}
            return await client.post(path, content=body, headers=headers)

    return asyncio.run(ask())


class Before:
    """Reads a body before its route does, as the limits do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.parsed = app, list[Any]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            message = await receive()
            self.parsed.append(parse_once(scope, message["body"]))
            messages = [message]

            async def again() -> Message:
                return messages.pop() if messages else await receive()

            await self.app(scope, again, send)


def test_a_body_that_was_parsed_before_its_route_is_not_parsed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = Before(make_app(FakeEngine()))
    asked: dict[str, Any] = {"prompt": "say a", "max_tokens": 3}
    parse, times = json.loads, 0

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal times
        times += 1
        return parse(*given, **more)

    monkeypatch.setattr(json, "loads", counted)
    answer = post_raw(before, "/v1/generate", json.dumps(asked).encode())
    monkeypatch.undo()

    assert answer.status_code == 200, answer.text
    assert (before.parsed, times) == ([asked], 1)


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_left_to_the_route(body: bytes) -> None:
    scope: dict[str, Any] = {}

    assert parse_once(scope, body) is None
    assert scope == {}
