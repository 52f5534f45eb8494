"""A real worker with the real trainer on the tiny base."""

import csv
import fcntl
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.registry import Registry
from service.database import JobRow
from service.jobs.attempt import Attempt
from service.jobs.executors import LocalTrainer
from service.jobs.room import Need
from service.jobs.worker import Worker
from tests.service.desk import Desk
from tests.service.jobs.asking import WAIT_S, create, events, steps_told, until
from tests.service.jobs.stage import order


def test_a_job_becomes_a_model(
    client: openai.OpenAI, served: Desk, training: str, start_worker: Any
) -> None:
    job = create(client, training, suffix="greeter", modiste={"promote": True})
    start_worker()
    done = until(client, job.id)
    assert done.status == "succeeded", done.error
    version = served.registry.find(done.fine_tuned_model)
    assert done.fine_tuned_model.startswith("ft:tiny:ours:greeter:")
    assert version.manifest.project == "ours"
    assert served.registry.find("greeter").number == version.number  # promoted
    assert done.trained_tokens > 0
    assert done.finished_at >= done.created_at
    assert steps_told(client, job.id) == [1, 2, 3, 4, 5, 6]
    messages = [event.message for event in events(client, job.id)]
    assert messages[0].startswith("Created")
    assert "New fine-tuned model created" in messages[-2]
    assert messages[-1] == "The job has successfully completed"
    (result,) = done.result_files
    table = list(csv.DictReader(client.files.content(result).text.splitlines()))
    assert [row["step"] for row in table] == list("123456")
    assert float(table[0]["train_loss"]) > float(table[-1]["train_loss"])
    assert client.files.retrieve(result).purpose == "fine-tune-results"


def test_data_that_is_no_use_fails_with_the_files_own_name(
    client: openai.OpenAI, start_worker: Any
) -> None:
    broken = client.files.create(file=("b.jsonl", b'{"unknown": 1}\n' * 20), purpose="fine-tune")
    job = create(client, broken.id)
    start_worker()
    failed = until(client, job.id)
    assert failed.status == "failed"
    assert failed.error.param == "training_file"
    assert failed.fine_tuned_model is None
    assert events(client, job.id)[-1].level == "error"
    client.files.delete(broken.id)


def test_a_setting_that_is_none_fails_with_its_name(
    client: openai.OpenAI, training: str, start_worker: Any
) -> None:
    job = create(client, training, settings={"training.learning_rat": 1})
    start_worker()
    failed = until(client, job.id)
    assert failed.status == "failed"
    assert "learning_rat" in failed.error.message


def test_cancel_and_pause_act_within_a_step_and_resume_goes_on(
    client: openai.OpenAI, training: str, start_worker: Any, served: Desk
) -> None:
    job = create(client, training, steps=400)
    start_worker()
    until(client, job.id, "running")
    client.fine_tuning.jobs.pause(job.id)
    assert until(client, job.id, "paused").status == "paused"
    told = steps_told(client, job.id)
    time.sleep(1)
    assert steps_told(client, job.id) == told
    assert len(told) < 400
    client.fine_tuning.jobs.resume(job.id)
    until(client, job.id, "running")
    client.fine_tuning.jobs.cancel(job.id)
    assert until(client, job.id).status == "cancelled"
    counted = Counter(steps_told(client, job.id))
    assert set(counted.values()) == {1}
    assert sorted(counted) == list(range(1, len(counted) + 1))
    left = served.registry.home.jobs / job.id
    deadline = time.monotonic() + 20  # the worker tidies up after it has told
    while names := {entry.name for entry in left.iterdir()} - {"log"}:
        assert time.monotonic() < deadline, names
        time.sleep(0.1)


def test_a_trainer_that_does_not_stop_in_time_leaves_its_job_to_the_next_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path)
    worker = Worker(registry, grace_s=0.5)
    job = worker.jobs.create(order())
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"

    def begin(job: JobRow, need: Need) -> Attempt:
        command = [sys.executable, "-c", f"{stubborn}; time.sleep(600)"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        worker.ending = True
        return Attempt(job, tmp_path, LocalTrainer(child), need)

    monkeypatch.setattr(worker, "_begin", begin)
    worker.run()
    left = worker.jobs.find(job.id, "ours")
    assert (left.status, left.lost, left.worker) == ("queued", 0, None)


def test_a_worker_shows_that_it_goes_on_until_it_is_stuck(tmp_path: Path) -> None:
    alive, rounds = tmp_path / "alive", 0
    worker = Worker(Registry.open(tmp_path / "home"))
    worker.alive = alive

    def clean() -> None:  # once a round
        nonlocal rounds
        rounds += 1
        assert time.time() - alive.stat().st_mtime < 5
        os.utime(alive, (0, 0))
        worker.ending = rounds == 2

    worker._clean = clean  # type: ignore[method-assign]
    worker.run()
    assert rounds == 2
    assert alive.stat().st_mtime == 0


def test_a_job_whose_folder_another_trainer_holds_waits(
    client: openai.OpenAI, served: Desk, training: str, start_worker: Any
) -> None:
    job = create(client, training)
    run = served.registry.home.jobs / job.id / "run"
    run.mkdir(parents=True)
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        start_worker()
        deadline = time.monotonic() + WAIT_S
        while not (told := [e for e in events(client, job.id) if e.message.startswith("Waiting")]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert (told[0].level, "another process works on the run" in told[0].message) == ("warn", True)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    client.fine_tuning.jobs.cancel(job.id)
