"""Figures reach TensorBoard and MLflow where they are installed; else the remedy is told."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapters.errors import InvalidInput
from finetune import reporters
from finetune.checkpoint import Interrupted
from finetune.metrics_file import read_metrics
from finetune.plan import Job
from finetune.progress import Progress
from finetune.train import train


def twice() -> Callable[[], bool]:
    asked = iter(range(1, 100))
    return lambda: next(asked) == 2


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_reporter_that_is_not_installed_is_told_with_its_remedy_before_training(
    name: str, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    job = make_job(training={"report_to": name})
    with pytest.raises(InvalidInput, match=rf"{name}, which is not installed.*pip install"):
        train(job)
    assert read_metrics(job.folder / "metrics.jsonl") == []


def test_a_reporter_that_fails_is_told_once_and_training_goes_on(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self, job: Job, step: int) -> None:
            pass

        def report(self, step: int, figures: Any) -> None:
            raise ConnectionError("server away")

        def close(self, *, finished: bool) -> None:
            raise AssertionError("was left out")

    monkeypatch.setattr(reporters, "check_installed", lambda wanted: None)
    monkeypatch.setitem(reporters._OPEN, "mlflow", Failing)
    said = io.StringIO()
    job = make_job(training={"report_to": ["mlflow"]})
    train(job, progress=Progress(job.plan.tokens, Console(file=said)))
    assert said.getvalue().count("mlflow gets no more figures: server away") == 1
    assert (job.folder / "adapter").exists()


def test_tensorboard_has_every_step_once_after_a_resume(make_job: Callable[..., Job]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = make_job(training={"report_to": "tensorboard"})
    with pytest.raises(Interrupted):
        train(job, stop=twice())
    train(job, resume=True)

    seen = EventAccumulator(str(job.folder / "tensorboard")).Reload().Scalars("loss")
    entries = read_metrics(job.folder / "metrics.jsonl")
    assert [event.step for event in seen] == [entry["step"] for entry in entries]
    assert [e.value for e in seen] == pytest.approx([entry["loss"] for entry in entries])


def test_mlflow_has_settings_and_every_step_in_one_run_after_a_resume(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracked").as_uri())
    job = make_job(training={"report_to": "mlflow", "loraplus_lr_ratio": 4})
    with pytest.raises(Interrupted):
        train(job, stop=twice())
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("translate")
    assert client.search_runs([experiment.experiment_id])[0].info.status == "KILLED"
    train(job, resume=True)

    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.loraplus_lr_ratio"] == "4.0"
    history = client.get_metric_history(run.info.run_id, "loss")
    found = {metric.step: metric.value for metric in history}
    entries = read_metrics(job.folder / "metrics.jsonl")
    assert found == {entry["step"]: entry["loss"] for entry in entries}
