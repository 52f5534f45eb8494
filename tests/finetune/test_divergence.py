"""Training that goes wrong stops, says why, and leaves the last good checkpoint."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune.checkpoint import checkpoints, load_checkpoint
from finetune.divergence import Diverged, Watch
from finetune.metrics_file import read_metrics
from finetune.plan import Job
from finetune.train import train


def test_an_absurd_learning_rate_stops_and_the_checkpoint_from_before_is_kept(
    make_job: Callable[..., Job],
) -> None:
    # the rate rises slowly, so that the first steps learn well and later ones undo it
    options = {"epochs": 200, "learning_rate": 1.0, "warmup_ratio": 0.9}
    job = make_job(training={**options, "checkpoint_every_steps": 10})
    with pytest.raises(Diverged, match=r"diverged.*learning rate.*step-\d+ from before is kept"):
        train(job)

    losses = {e["step"]: e["loss"] for e in read_metrics(job.folder / "metrics.jsonl")}
    assert all(math.isfinite(loss) for loss in losses.values())
    kept = checkpoints(job.folder / "checkpoints")
    last = load_checkpoint(kept[-1]).step
    lowest = min(losses.values())
    assert 10 < last < len(losses) - 5  # the spoiled ones are gone
    assert losses[last + 1] < losses[1] / 2  # what its weights gave
    assert statistics.median(list(losses.values())[-10:]) > 2 * lowest
    assert not (job.folder / "adapter").exists()
    adapter = load_checkpoint(kept[-1]).adapter
    assert all(torch.isfinite(weight).all() for weight in adapter.values())


def test_a_rate_that_spoils_the_first_steps_leaves_no_checkpoint(
    make_job: Callable[..., Job],
) -> None:
    options = {"learning_rate": 1.0, "warmup_ratio": 0, "loraplus_lr_ratio": 30}
    job = make_job(
        lora={"r": 4, "alpha": 64}, training={"epochs": 10, "checkpoint_every_steps": 2, **options}
    )
    with pytest.raises(Diverged, match=r"became nan at step \d.*none was saved before"):
        train(job)
    assert checkpoints(job.folder / "checkpoints") == []


def test_preference_tuning_stops_too(make_preference_job: Callable[..., Job]) -> None:
    options = {"epochs": 40, "learning_rate": 1.0, "warmup_ratio": 0, "beta": 2}
    job = make_preference_job(training=options)
    with pytest.raises(Diverged, match="learning rate"):
        train(job)
    assert not (job.folder / "adapter").exists()


def test_harder_batches_are_no_divergence_and_seldom_looked_into() -> None:
    watch = Watch(every=1)
    suspected = []
    for step, loss in enumerate([0.5] * 40 + [4.0] * 100, 1):
        if watch.see(step, loss):
            suspected.append(step)
            watch.accept(step)
    assert 40 < suspected[0] <= 60
    assert len(suspected) <= 3  # each costs an earlier adapter's pass over the window's batches


def test_a_slow_rise_is_still_compared_with_the_best() -> None:
    watch = Watch(every=1)
    for step in range(1, 200):
        if watch.see(step, 1.0 + 0.01 * max(step - 50, 0)):
            watch.accept(step)
    assert 50 < watch.good_step < 150


def test_a_step_is_good_once_the_next_loss_is_known() -> None:
    watch = Watch(every=1)
    good = []
    for step, loss in enumerate([2.0, 1.9, 1.8, 9.0, 9.0, 1.7], 1):
        watch.see(step, loss)
        good.append(watch.good_step)
    assert good == [0, 1, 2, 2, 2, 5]  # the odd ones aside, the median stays low


def test_one_odd_batch_is_not_looked_into() -> None:
    watch = Watch(every=1)
    losses = [30.0 if step % 15 == 0 else 2.0 + 0.4 * (step % 2) for step in range(1, 200)]
    assert not any(watch.see(step, loss) for step, loss in enumerate(losses, 1))


def test_only_regular_checkpoints_count_as_good() -> None:
    watch = Watch(every=4)
    good = []
    for step in range(1, 12):
        watch.see(step, 2.0)
        good.append(watch.good_step)
    assert good == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]


def test_weights_that_are_no_numbers_after_the_last_step_are_not_saved(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.optim.AdamW.step

    def spoiled(self: Any, *arguments: Any) -> Any:
        real(self, *arguments)
        for weight in self.param_groups[1]["params"]:
            weight.data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    job = make_job(training={"max_steps": 1})
    with pytest.raises(Diverged, match="weights"):
        train(job)
    assert not (job.folder / "adapter").exists()
