"""What vLLM streams, in the words of our API."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine import ErrorResponse
from service.routes.openai import _in_our_words

TEXT = 'data: {"choices": [{"text": "data: {\\"error\\":"}]}\n\n'
END = "data: [DONE]\n\n"


def told(status: int, *, dead: bool = False) -> dict[str, Any]:
    """The error of a stream in which vLLM tells one after some text."""
    error = ErrorResponse.model_validate(
        {"error": {"message": "/secret/place", "type": "X", "param": "prompt", "code": status}}
    )

    async def stream() -> AsyncGenerator[str, None]:
        for event in (TEXT, f"data: {json.dumps(error.model_dump())}\n\n", END):
            yield event

    async def read() -> list[str]:
        engine = SimpleNamespace(dead=dead)
        state = SimpleNamespace(modiste=SimpleNamespace(engine=engine))
        request: Any = SimpleNamespace(app=SimpleNamespace(state=state))
        return [event async for event in _in_our_words(stream(), request)]

    first, middle, last = asyncio.run(read())
    assert (first, last) == (TEXT, END)
    assert middle.endswith("\n\n")
    return dict(json.loads(middle.removeprefix("data: "))["error"])


@pytest.mark.parametrize(("dead", "code"), [(True, "engine_dead"), (False, "engine_failed")])
def test_a_failure_in_a_stream_has_our_code_and_nothing_of_vllms_insides(
    dead: bool, code: str
) -> None:
    error = told(500, dead=dead)
    assert (error["type"], error["code"]) == ("server_error", code)
    assert "secret" not in json.dumps(error)


def test_what_a_caller_did_wrong_keeps_its_field_and_message() -> None:
    error = told(400)
    assert (error["type"], error["code"], error["param"], error["message"]) == (
        "invalid_request_error", "invalid_value", "prompt", "/secret/place",
    )  # fmt: skip
