"""The adapter that is best on held-out examples is kept, and training stops when it stays so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.bases import Base
from finetune.base_model import load_tokenizer
from finetune.checkpoint import Interrupted, checkpoints, load_checkpoint
from finetune.evaluate import evaluate, load_adapter
from finetune.metrics_file import read_metrics
from finetune.mistakes import RecipeError
from finetune.plan import Job
from finetune.train import train


@pytest.fixture
def validation(write_lines: Callable[..., Path]) -> Path:
    """Four examples that follow another rule than the training data: learning hurts in the end."""
    return write_lines(
        "validation.jsonl",
        [{"text": f"{w} the page", "label": "long"} for w in ("save", "open", "zip", "drop")],
    )


@pytest.fixture
def job(make_job: Callable[..., Job], validation: Path) -> Callable[..., Job]:
    def make(folder: str = "run", **training: Any) -> Job:
        options = {"epochs": 20, "learning_rate": 0.02, "checkpoint_every_steps": 3}
        return make_job(
            folder, "classify", data={"validation": str(validation)},
            training={**options, **training},
        )  # fmt: skip

    return make


def after(count: int) -> Callable[[], bool]:
    """Say stop at the count-th question."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= count


def followed(job: Job, name: str) -> dict[int, float]:
    key = f"validation_{name}"
    entries = read_metrics(job.folder / "metrics.jsonl")
    return {e["step"]: e[key] for e in entries if key in e}


def test_the_adapter_with_the_lowest_loss_is_the_one_that_is_saved(
    job: Callable[..., Job],
) -> None:
    one = job(best_by="loss", checkpoint_every_steps=1, epochs=3)
    train(one)
    values = followed(one, "loss")
    best = min(values, key=values.__getitem__)
    assert best < len(values)  # else nothing was chosen

    # the run up to that step, schedule included
    again = job("again", checkpoint_every_steps=1, epochs=3)
    with pytest.raises(Interrupted):
        train(again, stop=after(best))
    expected = load_checkpoint(checkpoints(again.folder / "checkpoints")[-1]).adapter
    saved = load_file(one.folder / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def test_training_stops_once_the_figure_was_not_beaten_often_enough(
    job: Callable[..., Job],
) -> None:
    one = job(best_by="loss", patience=2)
    train(one)
    values = followed(one, "loss")
    best = min(values, key=values.__getitem__)
    steps = [e["step"] for e in read_metrics(one.folder / "metrics.jsonl")]
    assert steps[-1] == best + 2 * 3 < one.plan.steps
    assert (one.folder / "adapter").exists()


def test_the_tasks_own_figure_is_the_evaluations(job: Callable[..., Job], base: Base) -> None:
    one = job(best_by="accuracy", max_steps=6)
    train(one)
    values = followed(one, "accuracy")
    assert sorted(values) == [3, 6]

    model = load_adapter(base, one.folder / "adapter", "float32", "cpu")
    held_out = [replace(row, split="test") for row in one.prepared.of("validation")]
    tested = type(one.prepared)(held_out, one.prepared.labels, {}, {})
    report, _ = evaluate(model, load_tokenizer(base.path), one.recipe, tested)
    assert report["metrics"]["accuracy"]["value"] == max(values.values())


def test_an_early_stop_falls_on_the_same_step_in_a_run_that_was_stopped_and_resumed(
    job: Callable[..., Job],
) -> None:
    whole, parted = (job(name, best_by="loss", patience=2) for name in ("whole", "parted"))
    train(whole)

    for count in (2, 2, 3):  # at steps where nothing is measured
        with pytest.raises(Interrupted):
            train(parted, resume=True, stop=after(count))
    train(parted, resume=True)

    def told(one: Job) -> list[Any]:
        entries = read_metrics(one.folder / "metrics.jsonl")
        return [(e["step"], e["loss"], e.get("validation_loss")) for e in entries]

    assert told(parted) == told(whole)
    files = [one.folder / "adapter" / "adapter_model.safetensors" for one in (whole, parted)]
    assert files[0].read_bytes() == files[1].read_bytes()

    train(parted, resume=True)  # it had stopped for good
    assert told(parted) == told(whole)


def test_preferences_are_chosen_by_the_share_that_is_right(
    make_preference_job: Callable[..., Job], preferences: Path, tmp_path: Path
) -> None:
    lines = preferences.read_text().splitlines()
    held_out, rest = tmp_path / "v.jsonl", tmp_path / "t.jsonl"
    held_out.write_text("\n".join(lines[::4]) + "\n")
    rest.write_text("\n".join(line for n, line in enumerate(lines) if n % 4) + "\n")
    job = make_preference_job(
        data={"train": str(rest), "validation": str(held_out)},
        training={
            "best_by": "reward_accuracy", "epochs": 6, "learning_rate": 0.01,
            "checkpoint_every_steps": 2, "patience": 2,
        },
    )  # fmt: skip
    train(job)
    values = followed(job, "reward_accuracy")
    assert max(values.values()) > 0.9
    best = json.loads((checkpoints(job.folder / "checkpoints")[-1] / "position.json").read_text())[
        "best"
    ]
    assert values[best["step"]] == best["value"] == max(values.values())


@pytest.mark.parametrize(
    ("training", "data", "key"),
    [
        ({"best_by": "chrf"}, {"validation": "v.jsonl"}, "training.best_by"),
        ({"best_by": "reward_accuracy"}, {"validation": "v.jsonl"}, "training.best_by"),
        ({"best_by": "accuracy"}, {}, "training.best_by"),
        ({"patience": 2}, {}, "training.patience"),
    ],
)
def test_a_choice_that_cannot_be_made_is_a_mistake(
    make_recipe: Callable[..., Any], training: dict[str, Any], data: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe("classify", training=training, data=data)
    assert [mistake.key for mistake in caught.value.mistakes] == [key]
