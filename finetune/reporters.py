"""Figures of a run sent elsewhere on request: TensorBoard files, an MLflow server.

metrics.jsonl has all of them anyway. So a reporter that fails is told once and left out,
and training goes on.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any, Protocol

from rich.console import Console

from adapters.errors import InvalidInput
from finetune.options import Reporter
from finetune.plan import Job


class Reports(Protocol):
    """Where figures go."""

    def report(self, step: int, figures: Mapping[str, float]) -> None: ...
    def close(self, *, finished: bool) -> None: ...


def check_installed(wanted: Sequence[Reporter]) -> None:
    """Look for the packages of reporters, which are optional.

    Raises:
        InvalidInput: one is not installed.
    """
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise InvalidInput(
                f"training.report_to names {name}, which is not installed",
                hint=f"install it: pip install 'modiste[{name}]', or leave it out of "
                "training.report_to; metrics.jsonl has the same figures",
                param="training.report_to",
            )


@contextmanager
def reporting(job: Job, step: int, console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open what the recipe names; the function takes entries of metrics.jsonl.

    Args:
        step: steps done already, when a run goes on.

    Raises:
        InvalidInput: a reporter's package is not installed.
    """
    wanted = job.recipe.training.report_to
    check_installed(wanted)
    opened: dict[str, Reports] = {}

    def attempt(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - their own kinds; training must go on
            opened.pop(name, None)
            console.print(f"warning: {name} gets no more figures: {error}", markup=False)

    def report(entry: dict[str, Any]) -> None:
        figures = {
            name: float(value) for name, value in entry.items()
            if isinstance(value, Real) and name not in ("step", "time")
        }  # fmt: skip
        for where, place in list(opened.items()):
            attempt(where, partial(place.report, entry["step"], figures))

    def start(name: Reporter) -> None:
        opened[name] = _OPEN[name](job, step)

    for name in dict.fromkeys(wanted):
        attempt(name, partial(start, name))
    finished = False
    try:
        yield report
        finished = True
    finally:
        for where, place in list(opened.items()):
            attempt(where, partial(place.close, finished=finished))


class TensorBoard:
    """Event files in the run's folder; see them with `tensorboard --logdir HOME/runs`."""

    def __init__(self, job: Job, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # steps after the checkpoint were lost, and come again
        self._writer = SummaryWriter(str(job.folder / "tensorboard"), purge_step=step + 1)

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002 - it has no word for that
        self._writer.close()


class MLflow:
    """A run on the server of MLFLOW_TRACKING_URI, which a resumed run goes on with."""

    def __init__(self, job: Job, step: int) -> None:
        # a server that is away must not hold up training for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        path = job.folder / "mlflow-run.txt"
        if step and path.is_file():
            self._run = path.read_text().strip()
            self._client.update_run(self._run, status="RUNNING")
            return
        name = job.recipe.name
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=job.folder.name)
        self._run = run.info.run_id
        params = [Param(key, str(value)) for key, value in _parameters(job).items()]
        self._client.log_batch(self._run, params=params)
        path.write_text(self._run + "\n")

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        found = [Metric(name, value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=found)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


def _parameters(job: Job) -> dict[str, Any]:
    """The recipe's settings by dotted key."""
    recipe = job.recipe
    found: dict[str, Any] = {"base": job.base.name, "task": recipe.task, "recipe": recipe.digest}
    for part in ("lora", "training"):
        values = getattr(recipe, part).model_dump(mode="json")
        found |= {f"{part}.{key}": value for key, value in values.items()}
    return found


_OPEN: dict[str, Callable[[Job, int], Reports]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
