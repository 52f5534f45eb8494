"""A real worker that ends, and what becomes of its job and its trainer."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service.jobs.asking import create, events, steps_told, until


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_leaves_the_job_to_another(
    client: openai.OpenAI, training: str, start_worker: Any, way: int
) -> None:
    job = create(client, training, steps=60)
    first = start_worker()
    while len(steps_told(client, job.id)) < 5:
        time.sleep(0.1)
    children = _children(first.pid)
    assert len(children) == 1
    first.send_signal(way)
    first.wait(30)
    deadline = time.monotonic() + 10
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(child) for child in children)
    start_worker()
    done = until(client, job.id)
    assert done.status == "succeeded", done.error
    assert steps_told(client, job.id) == list(range(1, 61))
    if way == signal.SIGTERM:
        assert first.returncode == 0
        assert not [e for e in events(client, job.id) if "lost" in e.message]


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
    except (ProcessLookupError, FileNotFoundError):
        return False
