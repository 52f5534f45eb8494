"""Adapters of the ends of epochs: which are kept, what they are, and what they become."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.errors import GateFailed
from adapters.probe import Probe, judge
from adapters.registry import Registry
from finetune.checkpoint import load_checkpoint, path_of, save_checkpoint
from finetune.epochs import kept_adapters, step_of
from finetune.evaluate import load_adapter
from finetune.metrics_file import read_metrics
from finetune.plan import Job
from finetune.publish import measure
from finetune.train import train

SURE = {"metric": "chrf", "over_base": -1000.0, "over_live": None, "least_examples": 2}


class Killed(BaseException):
    """Nothing of the run goes on after it."""


def killed_after(step: int) -> Callable[[], bool]:
    asked = iter(range(1, 10_000))

    def stop() -> bool:
        if next(asked) == step:
            raise Killed
        return False

    return stop


def kept(job: Job) -> list[Path]:
    last = read_metrics(job.folder / "metrics.jsonl")[-1]["step"]
    return kept_adapters(job.folder, job.recipe.training, last)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def figures(job: Job) -> list[dict[str, Any]]:
    times = {"time", "tokens_per_second"}
    entries = read_metrics(job.folder / "metrics.jsonl")
    return [{k: v for k, v in entry.items() if k not in times} for entry in entries]


def test_the_ends_of_the_last_epochs_before_the_final_one_are_kept(
    make_job: Callable[..., Job],
) -> None:
    options = {"epochs": 4, "learning_rate": 0.01}
    job = make_job(training={**options, "keep_epochs": 2})
    each = job.plan.batches_per_epoch
    job = make_job(training={**options, "keep_epochs": 2, "checkpoint_every_steps": 3 * each})
    plain = make_job("plain", training={**options, "checkpoint_every_steps": 3 * each})
    train(job)
    train(plain)

    assert [step_of(path) for path in kept(job)] == [2 * each, 3 * each]
    assert sorted(path.name for path in (job.folder / "epochs").iterdir()) == [
        f"step-{2 * each:08d}", f"step-{3 * each:08d}"
    ]  # fmt: skip
    there = load_file(kept(job)[-1] / "adapter_model.safetensors")
    then = load_checkpoint(path_of(job.folder / "checkpoints", 3 * each)).adapter
    assert there.keys() == then.keys()
    assert all(torch.equal(there[name], then[name]) for name in there)

    assert figures(job) == figures(plain)
    assert files(job.folder / "adapter") == files(plain.folder / "adapter")
    assert not (plain.folder / "epochs").exists()


@pytest.mark.parametrize("after", ["the end", "a step more", "a checkpoint"])
def test_a_run_that_is_killed_and_resumed_has_the_same_ones(
    make_job: Callable[..., Job], after: str
) -> None:
    parts = {"training": {"epochs": 3, "keep_epochs": 2, "checkpoint_every_steps": 3}}
    whole, parted = make_job("whole", **parts), make_job("parted", **parts)
    each = whole.plan.batches_per_epoch
    assert each % 3
    train(whole)

    steps = {"the end": each, "a step more": each + 1, "a checkpoint": each + 4}
    with pytest.raises(Killed):
        train(parted, stop=killed_after(steps[after]))
    with pytest.raises(Killed):
        train(parted, resume=True, stop=killed_after(each))
    train(parted, resume=True)

    assert [files(path) for path in kept(parted)] == [files(path) for path in kept(whole)]
    assert len(kept(whole)) == 2


def test_an_adapter_is_kept_before_the_checkpoint_after_which_its_step_is_not_taken_again(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = make_job("other").plan.batches_per_epoch
    options = {"epochs": 2, "keep_epochs": 1, "checkpoint_every_steps": each}
    job = make_job(training=options)

    def saved(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("finetune.train.save_checkpoint", saved)
        with pytest.raises(Killed):
            train(job)
    train(job, resume=True)

    assert [step_of(path) for path in kept(job)] == [each]


def test_a_run_that_ends_within_an_epoch_has_those_before(make_job: Callable[..., Job]) -> None:
    each = make_job("other").plan.batches_per_epoch
    job = make_job(training={"epochs": 9, "max_steps": 2 * each + 1, "keep_epochs": 5})
    train(job)

    assert [step_of(path) for path in kept(job)] == [each, 2 * each]


def test_where_training_stops_early_the_last_ones_before_are_kept(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text('{"source": "one thing", "target": "zzz"}\n')  # gets worse by all the rest
    each = make_job("other").plan.batches_per_epoch
    options = {
        "epochs": 30, "learning_rate": 0.02, "warmup_ratio": 0.0, "best_by": "loss",
        "patience": 4, "checkpoint_every_steps": each, "keep_epochs": 2,
    }  # fmt: skip
    job = make_job(data={"validation": str(path)}, training=options)
    train(job)

    last = read_metrics(job.folder / "metrics.jsonl")[-1]["step"]
    assert last < job.plan.steps
    assert last % each == 0
    assert [step_of(path) for path in kept(job)] == [last - 2 * each, last - each]


@pytest.fixture
def command(task_files: dict[str, Path], finetune: Any) -> Any:
    def call(*sets: str) -> tuple[dict[str, Any], str]:
        quick = [
            f"data.train={task_files['translate']}", "training.epochs=3",
            "training.learning_rate=0.02", "training.batch_tokens=256",
            "evaluation.bootstrap_samples=20", "evaluation.max_new_tokens=6",
        ]  # fmt: skip
        code, answer, said = finetune("run", "translate", sets=[*quick, *sets])
        assert code == 0, said
        return answer, said

    return call


def test_what_is_kept_becomes_versions_with_probes_that_are_reproduced(
    command: Any, home: Path, base: Any
) -> None:
    answer, said = command("training.keep_epochs=2", f"gate={json.dumps(SURE)}")

    registry = Registry.open(home)
    versions = registry.versions(answer["version"].partition("@")[0])
    told = answer["checkpoints"]
    assert [v.reference for v in versions] == [entry["version"] for entry in told]
    assert [v.fine_tuned_model for v in versions] == [entry["fine_tuned_model"] for entry in told]
    *kept, result = versions
    assert result.reference == answer["version"]
    assert [v.manifest.checkpoint for v in versions] == [*(e["step"] for e in told[:2]), None]
    assert f"{kept[0].reference} is the adapter after step {told[0]['step']}" in said
    losses = {e["step"]: e["loss"] for e in read_metrics(Path(answer["folder"]) / "metrics.jsonl")}
    assert [entry["metrics"]["loss"] for entry in told] == [losses[e["step"]] for e in told]
    assert told[-1]["step"] == max(losses)

    for version in kept:
        probe = Probe.load(version.folder / "probe.json")
        model = load_adapter(base, version.folder, "float32", "cpu")
        assert judge(probe, measure(model, probe), "float32").proved
        assert version.manifest.metrics == {}
        assert "report.json" not in version.manifest.files
        with pytest.raises(GateFailed, match="not judged"):
            registry.promote(version.reference)
    registry.promote(result.reference)

    again, _ = command("training.keep_epochs=2", f"gate={json.dumps(SURE)}")
    assert again["checkpoints"] == told
    assert len(registry.versions(result.name)) == 3


def test_by_default_a_run_makes_one_version(command: Any, home: Path) -> None:
    answer, _ = command()
    assert len(Registry.open(home).versions(answer["version"].partition("@")[0])) == 1
    assert [entry["version"] for entry in answer["checkpoints"]] == [answer["version"]]


def test_the_best_adapter_tells_its_own_figures_and_may_be_one_that_was_kept(
    command: Any, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text('{"source": "one thing", "target": "zzz"}\n')
    sets = (f"data.validation={path}", "training.best_by=loss", "training.warmup_ratio=0")
    answer, _ = command(*sets, "training.keep_epochs=2", "training.checkpoint_every_steps=1")

    entries = read_metrics(Path(answer["folder"]) / "metrics.jsonl")
    best = min(entries, key=lambda entry: entry["validation_loss"])
    assert best["step"] < entries[-1]["step"]
    final = answer["checkpoints"][-1]
    assert final["step"] == entries[-1]["step"]
    assert final["metrics"]["validation_loss"] == best["validation_loss"]
    assert Registry.open(home).find(final["fine_tuned_model"]).manifest.checkpoint is None
