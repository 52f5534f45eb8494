"""A GPU that is full is told with a remedy, and a smaller base is looked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune import proposal, trial
from finetune.command import run_command
from finetune.full_gpu import NotEnoughMemory, told_when_full
from finetune.plan import Job
from finetune.train import Learner, train

FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.18 GiB"
)


def fail(*_arguments: Any, **_named: Any) -> Any:
    raise FULL


def test_training_and_its_trial_tell_of_it(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    monkeypatch.setattr(Learner, "take", fail)
    with pytest.raises(NotEnoughMemory, match=r"full: CUDA out of memory. Tried .* MiB") as caught:
        train(job)
    assert "training.batch_tokens" in caught.value.hint
    with pytest.raises(NotEnoughMemory):
        trial.measure(job.recipe, job.prepared, job.base, job.plan)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), told_when_full():
        raise RuntimeError("shapes differ")


def test_command_lines_tell_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finetune: Any,
    task_files: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.setattr("finetune.run.Run.prepare", fail)
    code, answer, _ = finetune("run", "generate", "--data", str(task_files["generate"]))
    assert (code, answer["error"]["code"]) == (1, "not_enough_memory")
    assert run_command("merge", fail, as_json=True) == 1
    assert "not_enough_memory" in capsys.readouterr().out


def test_a_base_that_does_not_fit_has_its_reason(
    finetune: Any, task_files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal, "measure", told_when_full()(fail))
    code, answer, _ = finetune("plan", "generate", "--data", str(task_files["generate"]))
    assert code == 2
    assert "tiny: the GPU's memory is full" in answer["error"]["message"]
