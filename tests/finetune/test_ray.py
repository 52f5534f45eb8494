"""Several workers give the losses of one, also when one is killed, and resume as one does."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

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
from finetune.train import Learner, stop_on_signals, train
from finetune.workers import LOG, STOP, lead

OPTIONS = {"epochs": 5, "batch_tokens": 96, "checkpoint_every_steps": 10}


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """Ray on this machine, for all tests here; nothing of it is left."""
    before = signal.getsignal(signal.SIGTERM)
    known = set(own_processes())
    with ray_started(1, 2, gpus=False):
        assert signal.getsignal(signal.SIGTERM) is before
        yield
        started = set(own_processes()) - known
    assert len(started) > 2
    _, left = psutil.wait_procs(started, timeout=2)
    assert {process.status() for process in left} <= {psutil.STATUS_ZOMBIE}


def own_processes() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def entries(job: Job) -> list[dict]:
    return read_metrics(job.folder / "metrics.jsonl")


def losses(job: Job) -> list[float]:
    return [entry["loss"] for entry in entries(job)]


def workers() -> list[psutil.Process]:
    return [p for p in own_processes() if "RayTrainWorker" in "".join(p.cmdline())]


def listening() -> set[str]:
    """Addresses on which this process and its children take connections."""
    own = {process.pid for process in own_processes()}
    found = psutil.net_connections(kind="inet")
    return {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN and c.pid in own}


def when(true: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Do something beside the training, as soon as it is time."""

    def wait() -> None:
        while not true():
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_two_workers_of_which_one_is_killed_and_then_none_give_the_losses_of_a_run_without_ray(
    make_job: Callable[..., Job], capfd: pytest.CaptureFixture[str]
) -> None:
    alone, job = make_job("alone", training=OPTIONS), make_job("ray", training=OPTIONS)
    batches = Learner.of(alone, ALONE).batches.of(0)
    assert min(map(len, batches)) == 1  # then a worker gets no row
    train(alone)
    said = io.StringIO()
    killed: list[int] = []
    addresses: set[str] = set()

    def kill() -> None:
        addresses.update(listening())
        os.kill(workers()[-1].pid, signal.SIGKILL)
        killed.append(len(entries(job)))

    when(lambda: len(entries(job)) >= 12, kill)
    when(
        lambda: bool(killed) and "resumed" in (job.folder / LOG).read_text(),
        partial(os.kill, os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(Interrupted) as stopped, stop_on_signals() as stop:
        train_on_ray(job, 2, resume=False, stop=stop, console=Console(file=said))
    printed = capfd.readouterr().out
    adapter = train(job, resume=True)

    steps = job.plan.steps
    assert 10 < stopped.value.step < steps
    assert str(stopped.value) == f"stopped after step {stopped.value.step}"
    told = [line for line in said.getvalue().splitlines() if "lost" in line or "resumed" in line]
    assert told[0] == "a worker was lost, so all of them were started again"
    assert told[1] in {f"resumed after step {done}" for done in range(10, killed[0] + 2, 10)}
    assert told[2:] == []
    assert printed == ""  # where --json writes
    assert losses(job) == pytest.approx(losses(alone), rel=1e-4)
    together = [entry.get("workers") for entry in entries(job)]
    assert together == [2] * stopped.value.step + [None] * (steps - stopped.value.step)
    assert (adapter / "adapter_model.safetensors").is_file()
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert not (job.folder / STOP).exists()


def test_an_error_of_the_loop_is_no_lost_worker(make_job: Callable[..., Job]) -> None:
    job = make_job(lora={"target_modules": ["nothing_like_it"]})
    error = lead(job, ALONE)
    assert isinstance(error, IncompatibleAdapter)
    assert error.param == "lora.target_modules"


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
