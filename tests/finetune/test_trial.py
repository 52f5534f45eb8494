"""Time and memory are measured on real steps, and nothing of it stays."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bases import Base
from adapters.prompt import Renderer
from finetune import trial
from finetune.config import Recipe
from finetune.data import Row, prepare
from finetune.metrics_file import read_metrics
from finetune.objectives import Answers
from finetune.plan import Job, make_plan
from finetune.preflight import add_estimate, check


@pytest.fixture
def measured(
    make_recipe: Callable[..., Recipe], renderer: Renderer, base: Base
) -> Callable[[], Any]:
    def measure() -> Any:
        recipe = make_recipe("translate", training={"epochs": 3})
        prepared = prepare(recipe, renderer, 512)
        plan = make_plan(recipe, prepared.of("train"), base.parameters)
        estimate = trial.measure(recipe, prepared, base, plan)
        return recipe, prepared, plan, estimate

    return measure


def test_the_estimate_is_that_of_all_tokens_at_the_measured_speed(
    measured: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    _, _, plan, estimate = measured()
    assert estimate.steps_measured == 5
    assert estimate.seconds == pytest.approx(plan.tokens / estimate.tokens_per_second)
    assert 0 < estimate.seconds_alone <= estimate.seconds
    assert estimate.peak_bytes > 50 * 2**20  # torch itself
    assert list(tmp_path.glob("modiste-trial-*")) == []


@pytest.mark.parametrize(("limit", "steps"), [("_BUDGET_S", 2), ("_LIMIT_S", 1)])
def test_a_slow_machine_is_measured_in_fewer_steps(
    limit: str, steps: int, measured: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, limit, 0.0)
    assert measured()[3].steps_measured == steps


def test_a_step_that_had_to_wait_does_not_spoil_the_estimate() -> None:
    times = [3.0, 4.0, 5.0, 25.0, 26.0, 28.0]
    assert trial.seconds_per_token(times, [9, 10, 10, 10, 10, 20]) == pytest.approx(0.1)


def test_the_batch_with_most_supervised_tokens_is_measured(make_row: Callable[..., Row]) -> None:
    rows = [make_row([n, *range(2 + n)], [1]) for n in range(60)]
    rows[17] = make_row(list(range(20)), list(range(1, 20)))
    chosen = trial.sample_batches(rows, Answers(), 64)
    assert rows[17] in chosen
    lengths = {len(row.ids) for row in chosen}
    assert {min(lengths), max(lengths)} == {3, 62}
    assert len(chosen) < 40


def test_the_trial_trains_as_the_run_will_and_tells_nobody(
    make_preference_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"micro_batch_tokens": 128, "activation_checkpointing": "on", "max_steps": 40,
                "report_to": "mlflow", "epochs": 20}  # fmt: skip
    job = make_preference_job(training=training)
    seen: list[tuple[Job, list[dict[str, Any]]]] = []

    def train(tried: Job, **options: Any) -> Path:
        adapter = real(tried, **options)
        seen.append((tried, read_metrics(tried.folder / "metrics.jsonl")))
        return adapter

    real = trial.train
    monkeypatch.setattr(trial, "train", train)
    estimate = trial.measure(job.recipe, job.prepared, job.base, job.plan)
    tried, steps = seen[0]
    assert (tried.plan.micro_batch_tokens, tried.plan.activation_checkpointing) == (128, True)
    assert tried.recipe.training.report_to == []
    assert all("reward_margin" in step for step in steps)
    both = sum(len(row.ids) + len(row.rejected_ids) for row in job.prepared.of("train"))
    assert steps[0]["tokens"] <= both
    passes = 40 / job.plan.batches_per_epoch
    assert estimate.seconds == pytest.approx(passes * both / estimate.tokens_per_second, rel=1e-3)


def test_the_peak_counts_memory_that_was_given_back_until_it_is_reset() -> None:
    trial._reset_peak("cpu")
    before = trial.peak_bytes("cpu")
    held = torch.ones(64 * 2**20)  # 256 MiB
    del held
    assert trial.peak_bytes("cpu") - before > 200 * 2**20
    trial._reset_peak("cpu")
    assert trial.peak_bytes("cpu") - before < 100 * 2**20


def test_too_little_memory_is_a_finding(measured: Callable[[], Any]) -> None:
    recipe, prepared, plan, estimate = measured()
    report = check(prepared, recipe, plan)
    add_estimate(report, asdict(estimate), memory=10 * estimate.peak_bytes)
    assert "not_enough_memory" not in {found.code for found in report.findings}
    add_estimate(report, asdict(estimate), memory=estimate.peak_bytes)
    assert "not_enough_memory" in {found.code for found in report.findings}
