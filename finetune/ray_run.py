"""The training loop on several workers that Ray Train starts, and starts again when one is lost.

Ray is started here for the run, on this machine's loopback address alone, or joined where
RAY_ADDRESS says. The workers read and write the run's folder and the base's, so on several
machines both must be on a file system that they share.
"""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
from rich.console import Console

from adapters.errors import AdapterError, InvalidInput
from finetune.plan import Job
from finetune.train import forget
from finetune.workers import LOG, STOP

_LOSSES = 5
"""Lost workers after which a run ends: then it is no accident."""
_LOOK_S = 0.2
_REASON_LENGTH = 300
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",  # they go to a dashboard, which is off
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a recipe stay what they are
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what it says of a lost worker would come on stdout
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
_ON_ONE_MACHINE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # whatever its name says: Ray listens on 127.0.0.1
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # clouds take machines away
}
"""Read when Ray is imported."""
_WORKERS_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}


class WorkersFailed(AdapterError):
    """Workers were lost too often, or could not be started."""

    code = "workers_failed"
    retryable = True


def train_on_ray(
    job: Job,
    workers: int | None,
    *,
    resume: bool,
    stop: Callable[[], bool],
    console: Console,
) -> Path:
    """Train as `finetune.train.train` does, with the same files and errors, on several workers.

    Args:
        workers: None: one a GPU, or one a machine where there is none.
        console: gets what the loop says.

    Raises:
        WorkersFailed: they were lost too often.
        InvalidInput: more workers are asked for than there is room for, or there is no cluster at
            RAY_ADDRESS.
    """
    folder = job.folder.resolve()
    base = job.base.model_copy(update={"path": job.base.path.resolve()})
    job = replace(job, folder=folder, base=base)
    if not resume:
        forget(folder)
    _clear(folder)
    gpus = job.plan.device == "cuda"
    console.print(f"Ray: {os.environ.get('RAY_ADDRESS') or 'on this machine'}", highlight=False)
    with ray_started(job.plan.threads, workers, gpus=gpus):
        count, cpus = _room(workers, gpus=gpus)
        console.print(f"starting {count} workers, CPUs of each: {cpus}", highlight=False)
        try:
            outcome = _fit(_trainer(job, count, cpus), folder, stop, console)
        finally:
            _clear(folder, also_log=False)
    if outcome is not None:
        raise outcome
    return folder / "adapter"


@contextmanager
def ray_started(cpus: int, workers: int | None, *, gpus: bool) -> Iterator[None]:
    """Start Ray on this machine, or join RAY_ADDRESS; a process that has Ray keeps it.

    Args:
        cpus: of this machine; more workers share them.

    Raises:
        InvalidInput: there is no cluster at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (_QUIET if address else _QUIET | _ON_ONE_MACHINE).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    own = psutil.Process()
    before = set(own.children(recursive=True))
    logs = tempfile.mkdtemp(prefix="ray-")
    here = {
        "address": "local", "num_cpus": max(cpus, workers or 1), "num_gpus": None if gpus else 0,
        "include_dashboard": False, "_temp_dir": logs,
    }  # fmt: skip
    try:
        _connect({"address": address} if address else here)
        signal.signal(signal.SIGTERM, handler)  # Ray put its own there
        yield
    finally:
        started = set(own.children(recursive=True)) - before
        ray.shutdown()
        for process in started:  # workers that are still about to end would stay for seconds
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(logs, ignore_errors=True)


def _connect(where: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise InvalidInput(
            f"there is no Ray cluster at {where['address']}: {error}",
            hint="correct RAY_ADDRESS, or unset it to train on this machine",
            param="RAY_ADDRESS",
        ) from error


def _room(workers: int | None, *, gpus: bool) -> tuple[int, int]:
    """How many workers, and how many CPUs each can have on whatever machine it comes to.

    Raises:
        InvalidInput: there is no room for so many.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    unit = "GPU" if gpus else "CPU"
    places = sum(int(node.get(unit, 0)) for node in nodes)
    count = (places if gpus else len(nodes)) if workers is None else workers
    if not 0 < count <= places:
        raise InvalidInput(
            f"--workers {count}: there are {places} {unit}s, and each worker needs one",
            hint="ask for fewer",
            param="--workers",
        )
    if gpus:
        return count, 1
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    fitting = (each for each in range(max(cpus), 0, -1) if sum(n // each for n in cpus) >= count)
    return count, next(fitting)


def _trainer(job: Job, count: int, cpus: int) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from finetune.ray_worker import OwnGroup, work

    gpus = job.plan.device == "cuda"
    each = {"CPU": cpus, "GPU": 1} if gpus else {"CPU": cpus}
    return TorchTrainer(
        partial(work, job, cpus),
        torch_config=OwnGroup(),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=gpus, resources_per_worker=each),
        run_config=RunConfig(
            name="run",
            storage_path=str(job.folder / ".ray"),
            failure_config=FailureConfig(max_failures=_LOSSES),
            worker_runtime_env={"env_vars": _WORKERS_ENVIRONMENT},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _fit(
    trainer: Any, folder: Path, stop: Callable[[], bool], console: Console
) -> Exception | None:
    """Let the workers train; show what they say, and hand on a wish to stop.

    Raises:
        WorkersFailed: they were lost too often.
    """
    from ray.train import TrainingFailedError

    fitting = _in_thread(trainer.fit)  # in the main thread Ray would take Ctrl-C for itself
    shown = 0
    while True:
        done, _ = wait([fitting], timeout=_LOOK_S)
        shown = _show(folder / LOG, shown, console)
        if done:
            break
        if stop() and not (folder / STOP).exists():
            console.print("stopping after a step, with a checkpoint; once more: at once")
            (folder / STOP).touch()
    try:
        outcome: Exception | None = fitting.result().return_value
    except TrainingFailedError as error:
        raise WorkersFailed(
            f"training ended, since workers failed more than {_LOSSES} times: {_reason(error)}",
            hint="with --resume it goes on from the last checkpoint",
        ) from error
    return outcome


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _show(log: Path, shown: int, console: Console) -> int:
    """Print what came to a file after so many bytes; returns how many there are now."""
    if not log.is_file():
        return shown
    with log.open("rb") as file:
        file.seek(shown)
        text, newline, _ = file.read().rpartition(b"\n")  # a line that is not whole waits
    if newline:
        console.print(text.decode("utf-8"), markup=False, highlight=False, soft_wrap=True)
    return shown + len(text) + len(newline)


def _reason(error: Any) -> str:
    """The last line of what each worker said."""
    failures = getattr(error, "worker_failures", {})
    texts = {f"worker {rank}: ": str(failure) for rank, failure in sorted(failures.items())}
    lines = [
        (who + text.strip().splitlines()[-1])[:_REASON_LENGTH]
        for who, text in (texts or {"": str(error)}).items() if text.strip()
    ]  # fmt: skip
    return "; ".join(lines)


def _clear(folder: Path, *, also_log: bool = True) -> None:
    """Remove what is for one run of the workers alone."""
    shutil.rmtree(folder / ".ray", ignore_errors=True)
    for name in (STOP, LOG) if also_log else (STOP,):
        (folder / name).unlink(missing_ok=True)
