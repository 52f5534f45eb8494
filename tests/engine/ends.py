"""Requests whose end is looked at, and the processes of a server."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

WAIT_S = 60


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def workers(pid: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if "service.jobs.worker" in _command(child)
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # it has ended since
        return []


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


@dataclass(frozen=True)
class Answer:
    """How a request ended: an error's code or what broke, else how many tokens came."""

    code: str = ""
    tokens: int = 0


def complete(
    url: str, tokens: int, *, stream: bool = False, route: str = "completions", key: str = "none"
) -> Answer:
    """Ask the base for so many tokens."""
    body: dict[str, Any] = {"model": "tiny", "max_tokens": tokens, "stream": stream}
    if route == "generate":
        body |= {"prompt": "save the"}
    elif route == "completions":
        body |= {"prompt": "save the", "ignore_eos": True}
    else:
        body |= {"messages": [{"role": "user", "content": "save the"}], "ignore_eos": True}
    if stream and route != "generate":
        body["stream_options"] = {"include_usage": True}
    try:
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.post(f"{url}/v1/{route}", json=body, headers=headers, timeout=120)
    except httpx.TransportError as error:
        return Answer(type(error).__name__)
    if not stream or answer.status_code != 200:
        told = answer.json()
        return _told(told)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    if events[-1] != "[DONE]":
        return Answer("cut")
    return _told(*(json.loads(event) for event in events[:-1]))


def _told(*events: dict[str, Any]) -> Answer:
    errors = [event["error"] for event in events if event.get("error")]
    if errors:
        return Answer(str(errors[0].get("code")))
    last = events[-1]
    reasons = [c.get("finish_reason") for e in events for c in e.get("choices", ())]
    if "abort" in reasons:
        return Answer("aborted")
    used = last.get("usage") or last.get("result", last).get("usage") or {}
    return Answer(tokens=used.get("completion_tokens", 0))


def in_flight(url: str) -> float:
    """Requests that are being answered, this one not among them."""
    found = re.search(
        r"^modiste_requests_in_flight (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE
    )
    assert found is not None
    return float(found[1]) - 1
