"""Batches as the tests ask for them, and servers that can be killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from adapters.registry import Registry
from bench.servers import free_port
from service.keys import Keys

ENDED = ("failed", "completed", "expired", "cancelled")


def line(custom_id: str, prompt: str, **more: Any) -> bytes:
    asked = {
        "custom_id": custom_id, "method": "POST", "url": "/v1/generate",
        "body": {"prompt": prompt},
    } | more  # fmt: skip
    return json.dumps(asked).encode() + b"\n"


def upload(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("asked.jsonl", content), purpose="batch").id


def create(client: openai.OpenAI, content: bytes, window: str = "24h", **more: Any) -> Any:
    return client.batches.create(
        input_file_id=upload(client, content), endpoint="/v1/generate",  # type: ignore[arg-type]
        completion_window=window, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def until(client: openai.OpenAI, id_: str, *statuses: str, wait_s: float = 30) -> Any:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        batch = client.batches.retrieve(id_)
        if batch.status in (*statuses, *ENDED):
            return batch
        time.sleep(0.05)
    raise AssertionError(f"{batch.status} with {batch.request_counts}")


def lines_of(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(one) for one in client.files.content(file).text.splitlines()]


class Process:
    """A server of its own for a home, with a stand-in for the engine; `log` is what it asked."""

    def __init__(self, home: Path, log: Path) -> None:
        self.home, self.log, self.port = home, log, free_port()
        self.start()

    def start(self) -> None:
        """Raises AssertionError: it ended, or took too long."""
        with (self.home / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.service.desk", str(self.home), str(self.port),
                 str(self.log)],
                stdout=out, stderr=out,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/v1/files")
            except httpx.TransportError:
                assert self.process.poll() is None, self.said()[-2000:]
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the server did not start")

    def said(self) -> str:
        return (self.home / "server.log").read_text()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def client(self, key: str) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=20, timeout=30)


@contextmanager
def processes(folder: Path, count: int = 1) -> Iterator[tuple[Registry, str, list[Process]]]:
    """Servers of one home, its registry, and a key."""
    registry = Registry.open(folder / "home")
    _, key = Keys(registry.database).create("ours")
    started = [Process(folder / "home", folder / f"asked-{n}") for n in range(count)]
    try:
        yield registry, key, started
    finally:
        for one in started:
            one.process.kill()
            one.process.wait(20)
