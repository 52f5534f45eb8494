"""Input that no client library sends: no 5xx, the server lives, and answers as before."""

import asyncio
import os
import socket
import threading
import time
from typing import Any

import httpx
import openai
import psutil
import pytest

from bench.hostile import Found, send_all
from tests.serving import Running

CASES = int(os.environ.get("HOSTILE_CASES", "300"))
ENDLESS = "\n".join(
    ["root ::= r0"] + [f"r{n} ::= r{n + 1} r{n + 1} | [a-z]* r{n + 1}" for n in range(200)]
    + ["r200 ::= [a-z ]+"]
)  # fmt: skip
"""The engine would compile it for ever."""
CHAT: Any = {"model": "one", "messages": [{"role": "user", "content": "save the file"}]}


def said(server: Running) -> str:
    answer = server.openai().chat.completions.create(**CHAT, max_tokens=8, temperature=0)
    return str(answer.choices[0].message.content)


def sent(server: Running, cases: int, seed: int) -> Found:
    """Some hostile cases; nothing of it may harm."""
    before = said(server)
    found = asyncio.run(send_all(server.url, "tiny", cases, seed))
    assert found.failures == []
    assert found.cases == cases
    assert server.client().get("/health/ready").status_code == 200
    assert said(server) == before
    return found


@pytest.mark.timeout(300)
def test_hostile_requests_are_answered_without_a_5xx(server: Running) -> None:
    found = sent(server, CASES, seed=1)
    answered = {what.rsplit(" ", 1)[-1] for what in found.statuses}
    assert {"200", "400", "404", "415", "431"} <= answered


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_hostile_requests_leave_no_memory_behind(server: Running) -> None:
    def resident() -> int:
        return int(psutil.Process(server.process.pid).memory_info().rss)

    sent(server, 5_000, seed=2)  # caches fill
    before = resident()
    sent(server, int(os.environ.get("HOSTILE_CASES", "50000")), seed=3)
    assert resident() <= before * 1.05


def test_a_grammar_without_an_end_is_refused_while_others_are_answered(server: Running) -> None:
    refused: list[openai.BadRequestError] = []

    def ask() -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            server.openai().chat.completions.create(
                **CHAT, extra_body={"structured_outputs": {"grammar": ENDLESS}}
            )
        refused.append(caught.value)

    asking = threading.Thread(target=ask)
    begun, waits = time.monotonic(), [0.0]
    asking.start()
    while asking.is_alive():
        last = time.monotonic()
        said(server)
        waits.append(time.monotonic() - last)
    asking.join()
    assert (refused[0].code, refused[0].param) == ("too_complex", "structured_outputs.grammar")
    assert time.monotonic() - begun < 60
    assert max(waits) < 5, waits


def test_a_schema_is_still_kept_to(server: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x", "y"]}}}
    answer = server.openai().chat.completions.create(
        **(CHAT | {"model": "tiny"}), response_format=form, max_tokens=60
    )
    assert answer.choices[0].message.content in ('"x"', '"y"')


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("chat/completions", {"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ("chat/completions", {"guided_json": {}}, "guided_json"),
        ("chat/completions", {"top_logprobs": 21, "logprobs": True}, "logprobs"),
        ("chat/completions", {"n": 300}, "n"),
        ("chat/completions", {"max_tokens": 2**63}, "max_tokens"),
        ("chat/completions", {"max_completion_tokens": 513}, "max_completion_tokens"),
        ("chat/completions", {"allowed_token_ids": [2**40]}, "allowed_token_ids"),
        ("completions", {"cache_salt": "x"}, "cache_salt"),
        ("completions", {"max_tokens": 100_000}, "max_tokens"),
        ("responses", {"priority": 5}, "priority"),
        ("responses", {"max_output_tokens": 100_000}, "max_output_tokens"),
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"stop": ["a"] * 5}, "stop"),
        ("completions", {"prompt": ["a"] * 300}, "prompt"),
        ("completions", {"logit_bias": {"1": 2**70}}, "logit_bias"),
        ("chat/completions", {"structured_outputs": []}, "structured_outputs"),
        ("chat/completions", {"messages": 5}, "messages"),
        ("completions", {"structured_outputs": "x"}, "structured_outputs"),
        ("responses", {"tools": 3}, "tools"),
        (
            "responses",
            {"structured_outputs": {"grammar": "root ::= root"}},
            "structured_outputs.grammar",
        ),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
    ],
)
def test_too_much_is_refused_by_its_field(
    server: Running, path: str, more: dict[str, Any], param: str
) -> None:
    body = {"chat/completions": CHAT, "completions": {"model": "one", "prompt": "a"}}.get(
        path, {"model": "one", "input": "a"}
    )
    answer = server.client().post(f"/v1/{path}", json=body | more)
    assert answer.status_code == 400, answer.text
    assert str(answer.json()["error"]["param"]).startswith(param)


def test_a_half_open_connection_holds_up_nobody(server: Running) -> None:
    address = httpx.URL(server.url)
    halves = [socket.create_connection((address.host, address.port)) for _ in range(50)]
    try:
        for half in halves:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: 10\r\n\r\n{")
        begun = time.monotonic()
        said(server)
        assert time.monotonic() - begun < 5
    finally:
        for half in halves:
            half.close()
