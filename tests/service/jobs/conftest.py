"""The queue; and a client of a server of the tiny base, with workers, for those who ask for it."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import openai
import pytest

from adapters.registry import Registry
from service.jobs.queue import Jobs
from tests.service.desk import Desk
from tests.service.jobs.asking import LINES


@pytest.fixture(scope="module")
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


@pytest.fixture(scope="module")
def training(served: Desk) -> str:
    return served.openai().files.create(file=("a.jsonl", LINES), purpose="fine-tune").id


@pytest.fixture
def jobs(registry: Registry) -> Jobs:
    return Jobs(registry.database)


@pytest.fixture
def start_worker(served: Desk) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    workers: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        home = served.registry.home.root
        log = (home / "worker.log").open("ab")
        command = [sys.executable, "-m", "service.jobs.worker", f"--home={home}", "--lease-s=3"]
        workers.append(subprocess.Popen(command, stdout=log, stderr=log))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
        worker.wait(30)
