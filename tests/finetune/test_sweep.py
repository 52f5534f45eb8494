"""The sweep, from a recipe to the published winner: killed, stopped, pruned, refused."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.registry import Registry
from finetune import sweep_study
from finetune.__main__ import main
from finetune.base_model import load_tokenizer
from finetune.config import read_recipe
from finetune.data import load_prepared
from finetune.evaluate import load_adapter
from finetune.measures import figures
from finetune.metrics_file import read_metrics
from finetune.subjects import Subject

ROOT = Path(__file__).parents[2]
LONGER = ("training.max_steps=12",)
"""Steps enough to be killed within a trial."""


@pytest.fixture
def arguments(task_files: dict[str, Path]) -> Callable[..., list[str]]:
    """A sweep's command line; classify over two learning rates and two ranks."""

    def make(*more: str, sets: tuple[str, ...] = (), over: tuple[str, ...] = ()) -> list[str]:
        settings = [
            f"data.train={task_files['classify']}", "data.validation_fraction=0.3",
            "training.max_steps=4", "training.batch_tokens=128",
            "training.checkpoint_every_steps=1", "training.learning_rate=0.02",
            "lora.r=4", "evaluation.bootstrap_samples=20", *sets,
        ]  # fmt: skip
        axes = over or ("training.learning_rate=0.02,0.001", "lora.r=4,8")
        options = [part for text in settings for part in ("--set", text)]
        options += [part for text in axes for part in ("--over", text)]
        return ["sweep", "classify", *options, *more]

    return make


@pytest.fixture
def sweep(arguments: Callable[..., list[str]], finetune: Any) -> Any:
    """As `finetune`, with that command line."""

    def call(*more: str, **parts: Any) -> tuple[int, dict[str, Any], str]:
        answered: tuple[int, dict[str, Any], str] = finetune(*arguments(*more, **parts))
        return answered

    return call


def steps_of(home: Path) -> dict[str, int]:
    """Steps trained by each run."""
    found = (home / "runs").glob("*/metrics.jsonl")
    return {path.parent.name: len(read_metrics(path)) for path in found}


def test_a_sweep_killed_with_9_goes_on_and_publishes_the_best_by_validation(
    arguments: Callable[..., list[str]], sweep: Any, home: Path, base: Any
) -> None:
    command = [sys.executable, "-m", "finetune", *arguments("--trials", "3", sets=LONGER)]
    command += ["--home", str(home), "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 120
        while sum(steps_of(home).values()) < 15:
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.kill()
    before = {path: path.stat().st_mtime_ns for path in (home / "runs").glob("*/validation.json")}
    assert len(before) == 1

    code, answer, said = sweep("--trials", "3", sets=LONGER)

    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in before} == before  # it is not run again
    assert "trial 2 of 3" in said
    assert "trial 1 of 3" not in said
    assert "resumed after step" in said
    trials = answer["trials"]
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    assert trials[0]["settings"] == {"training.learning_rate": 0.02, "lora.r": 4}
    assert len({json.dumps(trial["settings"]) for trial in trials}) == 3
    assert set(steps_of(home)) == {trial["run"] for trial in trials}

    with (Path(answer["folder"]) / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [trial["value"] for trial in trials]
    winner = trials[answer["winner"] - 1]
    assert winner["value"] == max(trial["value"] for trial in trials)
    assert winner["low"] <= winner["value"] <= winner["high"]
    assert winner["value"] == pytest.approx(accuracy(home, winner["run"], base, "validation"))

    version = Registry.open(home).find(answer["version"])
    assert version.manifest.training["config"]["lora"]["r"] == winner["settings"]["lora.r"]
    lineage = version.manifest.sweep
    assert lineage is not None
    assert (lineage.digest, lineage.trials) == (answer["digest"], 3)
    assert lineage.space == {"training.learning_rate": "0.02, 0.001", "lora.r": "4, 8"}
    held_out = version.manifest.metrics["accuracy"].value
    assert held_out == pytest.approx(accuracy(home, winner["run"], base, "test"))
    # the test examples are of the winner alone
    assert len(list((home / "runs").glob("*/report.json"))) == 1

    # more trials may be asked for, but time is over
    code, again, said = sweep("--trials", "4", "--minutes", "0.0001", sets=LONGER)
    assert "of 0.0001 minutes are over" in said
    assert (code, again["trials"], again["version"]) == (0, trials, answer["version"])
    assert "trial 1 of" not in said


def accuracy(home: Path, run: str, base: Any, split: Any) -> float:
    folder = home / "runs" / run
    prepared = load_prepared(folder)
    recipe = read_recipe(str(folder / "recipe.yaml"))
    model = load_adapter(base, folder / "adapter", "float32", "cpu")
    rows = prepared.of(split)
    assert rows
    subject = Subject(model, load_tokenizer(base.path), recipe, rows, prepared.labels)
    with torch.no_grad():
        return figures(subject)["accuracy"]


def test_sigterm_stops_after_a_checkpoint_and_the_same_command_goes_on(
    sweep: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune import train as module

    real = module._optimise

    def optimise(*given: Any) -> Any:
        if sum(steps_of(home).values()) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_optimise", optimise)
        code, answer, said = sweep("--trials", "2")
    assert code == 130
    assert "left a checkpoint after step 2" in said
    assert [trial["state"] for trial in answer["trials"]] == ["finished"]
    assert sorted(steps_of(home).values()) == [2, 4]

    code, answer, said = sweep("--trials", "2", "--no-prune")
    assert code == 0, said
    assert "resumed after step 2" in said
    assert [trial["state"] for trial in answer["trials"]] == ["finished"] * 2


def test_a_trial_that_is_behind_is_pruned_and_one_that_fails_does_not_end_the_sweep(
    sweep: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_study, "LEAST_FINISHED", 1)
    code, answer, said = sweep(
        over=("training.learning_rate=0.02,1e-9",), sets=("training.best_by=loss",)
    )

    assert code == 0, said
    first, behind = answer["trials"]
    assert (first["state"], behind["state"]) == ("finished", "pruned")
    assert answer["metric"] == "loss"
    assert steps_of(home)[behind["run"]] < 4
    assert "median of the others" in behind["reason"]
    assert "all settings were tried: 2" in said
    # measured as training measured the adapter that it kept
    metrics = read_metrics(home / "runs" / first["run"] / "metrics.jsonl")
    kept = min(entry["validation_loss"] for entry in metrics)
    assert first["value"] == pytest.approx(kept, rel=1e-5)
    assert answer["winner"] == 1

    code, answer, said = sweep(
        sets=("lora.target_modules=[q_proj]",),
        over=("lora.target_modules=[q_proj],[nothing],[v_proj]",),
    )
    states = {json.dumps(t["settings"]["lora.target_modules"]): t for t in answer["trials"]}
    failed = states.pop('["nothing"]')
    assert (code, failed["state"]) == (0, "failed")
    assert "can't be adapted" in failed["reason"]
    assert "failed" not in {trial["state"] for trial in states.values()}


def test_a_sweep_stops_where_all_of_the_first_trials_fail(sweep: Any, home: Path) -> None:
    over = ("lora.target_modules=[one],[two],[three],[four]",)
    code, answer, said = sweep(over=over)
    assert (code, answer["error"]["code"]) == (1, "no_trial_finished")
    assert "all 3 trials failed" in said
    assert said.count("can't be adapted") >= 3
    (table,) = (home / "sweeps").glob("*/trials.csv")
    with table.open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["failed"] * 3

    code, _, said = sweep(over=over)  # asked again, it tries others
    assert (code, "none of 4 trials finished" in said) == (1, True)
    assert "trial 3 of" not in said


def test_data_that_no_settings_mend_ends_a_sweep_at_once(
    sweep: Any, home: Path, task_files: dict[str, Path]
) -> None:
    same = task_files["classify"]
    code, _, said = sweep(sets=(f"data.test={same}",))
    assert (code, "preflight found 1 error" in said) == (2, True)
    assert "trial 2 of" not in said


def test_bad_spaces_and_misplaced_options_are_told_before_anything_runs(
    sweep: Any,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, answer, said = sweep(over=("lora.rr=1,2", "training.learning_rate=1..0.1"))
    assert code == 2
    mistakes = {m["key"]: m for m in answer["error"]["mistakes"]}
    assert set(mistakes) == {"lora.rr", "training.learning_rate"}
    assert all(m["remedy"] for m in mistakes.values())
    assert "2 mistakes" in said
    assert sweep("--base", "tiny")[1]["error"]["param"] == "--base"
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    assert "pip install" in sweep(sets=("training.report_to=mlflow",))[1]["error"]["hint"]
    assert main(["run", "classify", "--trials", "3"]) == 2
    assert "finetune sweep RECIPE" in capsys.readouterr().err
    assert not (home / "runs").exists()
    assert not (home / "sweeps").exists()
