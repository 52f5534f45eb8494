"""The end of a real server: its worker ends too, and usage is in the database."""

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adapters.registry import Registry
from service.usage import Usage
from tests.made import add_tiny_base
from tests.serving import Running, start, stop

WAIT_S = 60


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_base(Registry.open(tmp_path))
    return tmp_path


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
        if "service.jobs.worker" in child.cmdline()
    ]


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def used(home: Path) -> dict[tuple[str, str], int]:
    today = datetime.now(UTC).date()
    sums = Usage(Registry.open(home).database).sums(
        today - timedelta(days=1), today, ["model", "route"]
    )
    return {(s.group["model"], s.group["route"]): s.counts.completion_tokens for s in sums}


def test_sigterm_ends_the_worker_and_brings_in_the_usage(home: Path) -> None:
    process, url = start(home)
    try:
        (first,) = until(lambda: workers(process.pid))
        assert first.nice() == 10
        first.kill()
        (second,) = until(lambda: [w for w in workers(process.pid) if w.pid != first.pid])
        body = {"model": "tiny", "prompt": "save the", "max_tokens": 3, "ignore_eos": True}
        for _ in range(2):
            httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status()
    finally:
        code = stop(process)
    assert code == 0
    assert not alive(second)
    assert used(home) == {("tiny", "/v1/completions"): 6}
    assert (home / "serve.log").read_text().count("the worker ended with -9") == 1


def test_kill_9_takes_the_worker_along(home: Path) -> None:
    process, _ = start(home)
    (worker,) = until(lambda: workers(process.pid))
    until(lambda: "waits for jobs" in (home / "serve.log").read_text())
    os.killpg(process.pid, signal.SIGKILL)  # the worker is in a session of its own
    process.wait()
    until(lambda: not alive(worker))


def test_usage_is_told_while_the_server_runs(server: Running) -> None:
    before = _tokens(server)
    server.openai().completions.create(model="one", prompt="save the", max_tokens=4)
    assert until(lambda: _tokens(server) > before)


def _tokens(server: Running) -> int:
    with server.client() as client:
        answer = client.get("/v1/usage", params={"group_by": "model,route", "days": 2}).json()
    (bucket,) = answer["data"]
    return sum(
        one["output_tokens"]
        for one in bucket["results"]
        if (one["model"], one["route"]) == ("one@1", "/v1/completions")
    )
