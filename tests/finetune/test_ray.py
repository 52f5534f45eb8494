"""Several workers give the losses of one, also when one is killed, and resume as one does."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from adapters.errors import IncompatibleAdapter, InvalidInput
from finetune.checkpoint import Interrupted
from finetune.executor import Executor
from finetune.group import ALONE
from finetune.metrics_file import read_metrics
from finetune.plan import Job
from finetune.ray_run import ray_started, train_on_ray
from finetune.train import Learner, train

OPTIONS = {"epochs": 6, "batch_tokens": 96, "checkpoint_every_steps": 4}


@pytest.fixture(scope="module", autouse=True)
def ray_runs() -> Iterator[None]:
    """Ray on this machine, for all tests here."""
    before = signal.getsignal(signal.SIGTERM)
    with ray_started(1, 2, gpus=False):
        assert signal.getsignal(signal.SIGTERM) is before
        yield


@pytest.fixture
def on_two(tmp_path: Path) -> Callable[..., str]:
    """Train on two workers; returns what was printed."""

    def run(job: Job, *, resume: bool = False, stop: bool = False) -> str:
        text = tmp_path / "said.txt"
        try:
            with text.open("a") as file:
                train_on_ray(job, 2, resume=resume, stop=lambda: stop, console=Console(file=file))
        finally:
            assert not (job.folder / ".stop").exists()
        return text.read_text()

    return run


def entries(job: Job) -> list[dict]:
    return read_metrics(job.folder / "metrics.jsonl")


def losses(job: Job) -> list[float]:
    return [entry["loss"] for entry in entries(job)]


def own_processes() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def workers() -> list[psutil.Process]:
    return [p for p in own_processes() if "RayTrainWorker" in "".join(p.cmdline())]


def test_two_workers_of_which_one_is_killed_give_the_losses_of_one(
    make_job: Callable[..., Job], on_two: Callable[..., str]
) -> None:
    one, two = make_job("one", training=OPTIONS), make_job("two", training=OPTIONS)
    batches = Learner.of(one, ALONE).batches.of(0)
    assert {len(batch) for batch in batches} > {1}  # of one row, a worker gets none
    killed: list[int] = []
    listening: set[str] = set()

    def kill() -> None:
        while len(entries(two)) < 6:
            time.sleep(0.01)
        os.kill(workers()[-1].pid, signal.SIGKILL)
        killed.append(len(entries(two)))
        for process in own_processes():
            for found in process.net_connections(kind="inet"):
                if found.status == psutil.CONN_LISTEN:
                    listening.add(found.laddr.ip)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    said = on_two(two)
    killer.join()
    train(one)

    assert killed[0] < two.plan.steps
    assert "resumed after step" in said
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert len(listening) >= 1
    assert [entry["workers"] for entry in entries(two)] == [2] * two.plan.steps
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert (two.folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_run_goes_on_with_two_workers_and_then_with_one(
    make_job: Callable[..., Job], on_two: Callable[..., str]
) -> None:
    options = {**OPTIONS, "max_steps": 12}
    whole, mixed = make_job("whole", training=options), make_job("mixed", training=options)
    train(whole)
    asked = iter(range(1, 100))
    with pytest.raises(Interrupted):
        train(mixed, stop=lambda: next(asked) == 3)

    with pytest.raises(Interrupted) as stopped:
        on_two(mixed, resume=True, stop=True)
    assert stopped.value.step == 4
    train(mixed, resume=True)

    assert [entry.get("workers") for entry in entries(mixed)] == [None] * 3 + [2] + [None] * 8
    assert losses(mixed) == pytest.approx(losses(whole), rel=1e-4)


def test_an_error_of_the_loop_comes_out_as_itself_at_once(
    make_job: Callable[..., Job], on_two: Callable[..., str]
) -> None:
    job = make_job(lora={"target_modules": ["nothing_like_it"]})
    with pytest.raises(IncompatibleAdapter, match="can't be adapted") as caught:
        on_two(job)
    assert caught.value.param == "lora.target_modules"


def test_more_workers_than_there_is_room_for_are_refused(make_job: Callable[..., Job]) -> None:
    with pytest.raises(InvalidInput, match="there are 2 CPUs"):
        train_on_ray(make_job(), 3, resume=False, stop=lambda: False, console=Console())


def test_options_that_do_not_go_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="several processes") as caught:
        Executor("local", 2)
    assert "--executor ray" in caught.value.hint
    with pytest.raises(InvalidInput, match="from 1 to 1024"):
        Executor("ray", 0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match="not installed") as caught:
        Executor("ray", 2)
    assert "modiste[ray]" in caught.value.hint
