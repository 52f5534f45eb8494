"""A real worker with the real trainer on the tiny base."""

import csv
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.registry import Registry
from service.database import JobRow
from service.jobs.attempt import Attempt
from service.jobs.executors import LocalTrainer
from service.jobs.queue import Order
from service.jobs.room import Need
from service.jobs.worker import Worker
from tests.made import add_tiny_base
from tests.service.desk import Desk, desk

LINES = b"".join(
    b'{"messages": [{"role": "user", "content": "say %d"}, '
    b'{"role": "assistant", "content": "the file %d is open"}]}\n' % (n, n)
    for n in range(60)
)
DONE = ("succeeded", "failed", "cancelled")
WAIT_S = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk(tmp_path_factory.mktemp("home")) as served:
        add_tiny_base(served.registry)
        yield served


@pytest.fixture
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


@pytest.fixture(scope="module")
def training(served: Desk) -> str:
    return served.openai().files.create(file=("a.jsonl", LINES), purpose="fine-tune").id


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


def create(client: openai.OpenAI, training: str, steps: int = 6, **more: Any) -> Any:
    settings = {
        "training.max_steps": steps, "training.epochs": 100, "training.batch_tokens": 128,
        "training.learning_rate": 0.01, "training.checkpoint_every_steps": 2,
        "evaluation.max_generated": 2, "evaluation.max_new_tokens": 4,
    } | more.pop("settings", {})  # fmt: skip
    method = {"type": "supervised", "modiste": {"settings": settings, **more.pop("modiste", {})}}
    model = client.fine_tuning.jobs.list(limit=1)  # the server is there
    assert model.object == "list"
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=training, extra_body={"method": method}, **more
    )


def order(project: str = "ours", base: str = "tiny", **settings: Any) -> Order:
    trainer = {"recipe": "generate", "base": base, "settings": settings, "promote": False}
    method = {"type": "supervised", "supervised": {"hyperparameters": {}}}
    return Order(project, "key_1", base, "file-a", None, None, 1, method, None, trainer)


def until(client: openai.OpenAI, id_: str, *statuses: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(id_)
        if job.status in (*statuses, *DONE):
            return job
        time.sleep(0.1)
    raise AssertionError(f"{id_} is {job.status} after {WAIT_S} s")


def events(client: openai.OpenAI, id_: str) -> list[Any]:
    return list(client.fine_tuning.jobs.list_events(id_, limit=100))[::-1]


def steps_told(client: openai.OpenAI, id_: str) -> list[int]:
    return [event.data["step"] for event in events(client, id_) if event.type == "metrics"]


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
    assert [entry.name for entry in left.iterdir()] == ["log"]


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


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_versions_of_another_projects_name_get_one_of_their_own(
    served: Desk, start_worker: Any
) -> None:
    theirs = served.openai("theirs")
    file = theirs.files.create(file=("a.jsonl", LINES), purpose="fine-tune").id
    job = create(theirs, file, suffix="greeter")
    start_worker()
    done = until(theirs, job.id)
    assert done.status == "succeeded", done.error
    version = Registry.open(served.registry.home.root).find(done.fine_tuned_model)
    assert version.name.startswith("greeter-")
    assert version.manifest.project == "theirs"


def test_a_job_has_a_checkpoint_for_each_of_its_last_epochs(
    client: openai.OpenAI, served: Desk, training: str, start_worker: Any
) -> None:
    settings = {"training.max_steps": None, "training.epochs": 3, "training.batch_tokens": 2048}
    start_worker()
    jobs = []
    for _ in range(2):  # the second makes equal content
        job = create(client, training, suffix="keeper", seed=7, settings=settings)
        jobs.append(until(client, job.id))
        assert jobs[-1].status == "succeeded", jobs[-1].error
    first, second = (client.fine_tuning.jobs.checkpoints.list(job.id).data for job in jobs)

    steps = [kept.step_number for kept in first]
    each = steps[0] // 3
    assert steps == [3 * each, 2 * each, each]
    names = [kept.fine_tuned_model_checkpoint for kept in first]
    assert names[0] == jobs[0].fine_tuned_model
    assert [name.rpartition(":")[2] for name in names[1:]] == [
        f"ckpt-step-{step}" for step in steps[1:]
    ]
    assert [kept.fine_tuning_job_id for kept in first] == [jobs[0].id] * 3
    for kept in first:
        assert kept.metrics.step == kept.step_number
        assert kept.metrics.train_loss is not None
        assert kept.metrics.train_mean_token_accuracy is None
    versions = [served.registry.find(name) for name in names]
    assert len({version.digest for version in versions}) == 3
    assert versions[0].number == len(served.registry.versions("keeper")) == 3

    assert [kept.fine_tuned_model_checkpoint for kept in second] == names
    assert {kept.id for kept in second}.isdisjoint(kept.id for kept in first)
    page = client.fine_tuning.jobs.checkpoints.list(jobs[0].id, limit=1)
    assert [kept.id for kept in page] == [kept.id for kept in first]


def test_settings_of_the_caller_say_what_is_kept(
    client: openai.OpenAI, served: Desk, training: str, start_worker: Any
) -> None:
    settings = {
        "training.max_steps": None, "training.epochs": 2, "training.batch_tokens": 2048,
        "training.keep_epochs": 0,
    }  # fmt: skip
    start_worker()
    done = until(client, create(client, training, suffix="alone", settings=settings).id)
    assert done.status == "succeeded", done.error
    (kept,) = client.fine_tuning.jobs.checkpoints.list(done.id).data
    assert kept.fine_tuned_model_checkpoint == done.fine_tuned_model
    assert len(served.registry.versions("alone")) == 1


def test_the_validation_files_loss_is_told_and_the_model_measured_on_it(
    client: openai.OpenAI, served: Desk, training: str, start_worker: Any
) -> None:
    lines = b"".join(
        b'{"prompt": "tell %d", "completion": "file %d"}\n' % (n, n) for n in range(12)
    )
    held_out = client.files.create(file=("v.jsonl", lines), purpose="fine-tune").id
    job = create(client, training, suffix="validated", validation_file=held_out)
    start_worker()
    done = until(client, job.id)
    assert done.status == "succeeded", done.error
    told = [event.data.get("valid_loss") for event in events(client, job.id) if event.data]
    assert [value is not None for value in told] == [False, True] * 3  # at every checkpoint
    datasets = served.registry.find(done.fine_tuned_model).manifest.datasets
    assert {(one.split, one.examples) for one in datasets if one.split != "train"} == {
        ("validation", 12), ("test", 12),
    }  # fmt: skip
