"""Jobs on a Ray cluster of this machine: done, taken up by another worker, cancelled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.errors import InvalidInput
from bench.servers import free_port
from service.jobs.ray_jobs import RayJobs
from service.jobs.worker import main
from tests.service.desk import Desk
from tests.service.jobs.asking import create, steps_told, until

pytestmark = pytest.mark.timeout(400)
STEPS = 400
"""So many that the trainer still works when the second worker has come."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head with its dashboard, on 127.0.0.1 alone; its folder has a short path, for sockets."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")  # newer ones ask for a token
    folder = Path(f"/tmp/ray-test-{os.getpid()}")
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        "--node-ip-address=127.0.0.1", f"--port={free_port()}", "--include-dashboard=true",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--num-cpus=2",
        "--disable-usage-stats", f"--temp-dir={folder}", "--object-store-memory=100000000",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("ray") / "log").open("wb")
    head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        try:
            httpx.get(f"{url}/api/jobs/").raise_for_status()
            break
        except httpx.HTTPError:
            assert time.monotonic() < deadline, Path(log.name).read_text()[-3000:]
            assert head.poll() is None, Path(log.name).read_text()[-3000:]
            time.sleep(0.3)
    yield url
    patch.undo()
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


class Workers:
    """Workers of one home and cluster, as processes."""

    def __init__(self, home: Path, cluster: str) -> None:
        self._home, self._cluster = home, cluster
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self) -> "subprocess.Popen[bytes]":
        log = (self._home / "worker.log").open("ab")
        command = [
            sys.executable, "-m", "service.jobs.worker", f"--home={self._home}", "--lease-s=3",
            "--executor=ray-jobs", f"--ray-address={self._cluster}",
        ]  # fmt: skip
        self.all.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.all[-1]


@pytest.fixture
def workers(served: Desk, cluster: str) -> Iterator[Workers]:
    workers = Workers(served.registry.home.root, cluster)
    yield workers
    for process in workers.all:
        process.kill()
        process.wait()


def submissions(cluster: str, job: str) -> list[Any]:
    told = httpx.get(f"{cluster}/api/jobs/").json()
    return [one for one in told if (one["submission_id"] or "").startswith(job)]


def test_a_job_whose_worker_dies_goes_on_and_is_taken_up(
    client: openai.OpenAI, training: str, workers: Workers, cluster: str, served: Desk
) -> None:
    job = create(client, training, steps=STEPS, suffix="on-ray")
    first = workers.start()
    while not steps_told(client, job.id):
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    workers.start()
    done = until(client, job.id)
    assert done.status == "succeeded", done.error
    assert steps_told(client, job.id) == list(range(1, STEPS + 1))
    (one,) = submissions(cluster, job.id)  # the second worker submitted no other
    assert one["status"] == "SUCCEEDED"
    assert served.registry.find(done.fine_tuned_model).manifest.project == "ours"


def test_cancelled_within_a_step_and_failures_are_told(
    client: openai.OpenAI, training: str, workers: Workers, cluster: str
) -> None:
    workers.start()
    job = create(client, training, steps=5000)
    until(client, job.id, "running")
    client.fine_tuning.jobs.cancel(job.id)
    assert until(client, job.id).status == "cancelled"
    assert [one["status"] for one in submissions(cluster, job.id)] == ["STOPPED"]
    broken = client.files.create(file=("b.jsonl", b'{"unknown": 1}\n' * 9), purpose="fine-tune")
    failed = until(client, create(client, broken.id).id)
    assert (failed.status, failed.error.param) == ("failed", "training_file")


def test_a_cluster_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(InvalidInput, match="no Ray cluster answers"):
        RayJobs(address)
    options = [f"--home={tmp_path}", "--executor=ray-jobs"]
    assert main([*options, f"--ray-address={address}"]) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(options)
