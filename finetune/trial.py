"""How long training will take and how much memory it needs, measured in a few real steps.

The real loop trains the real model on some of the real batches, in a folder that is thrown away.
A step's time for each token is taken as their median, so that one step which had to wait for
another process does not spoil it; the peak is what this process held resident at most.
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from adapters.bases import Base
from finetune.base_model import free_memory
from finetune.batching import make_batches
from finetune.checkpoint import Interrupted
from finetune.config import Recipe
from finetune.data import Prepared, Row
from finetune.objectives import Objective, objective_of, usable_rows
from finetune.options import BatchBounds
from finetune.plan import Job, Plan, cores
from finetune.progress import Progress
from finetune.train import train

_STEPS = 5
"""Measured ones; the one before warms up."""
_BUDGET_S, _LIMIT_S = 30.0, 60.0
"""After so long two measured steps are enough, and one."""
_FORWARD_SHARE = 0.35
"""Of the time of a step over answers, what a pass without gradients takes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a whole run will take."""

    seconds: float
    """Of training with the cores as busy as now: the validation's losses included, what is
    generated for `training.best_by` and the evaluation not."""
    seconds_alone: float
    """The least it can take: by the processor's time, as if no other process had the cores."""
    peak_bytes: int
    """Resident memory of the process, on a GPU the memory that was given out there."""
    tokens_per_second: float
    steps_measured: int
    took_seconds: float
    """Of the measurement itself, loading the model included."""
    load: float
    """Processes that wanted a core in the minute before, for each core: over 1, others had some."""


def measure(recipe: Recipe, prepared: Prepared, base: Base, plan: Plan) -> Estimate:
    """Train some steps, as the recipe trains, and tell what all of them will take.

    Raises:
        Diverged, IncompatibleAdapter: as training would.
    """
    started, load = time.monotonic(), os.getloadavg()[0] / cores()
    objective = objective_of(recipe.training)
    rows = usable_rows(prepared.of("train"), objective)
    chosen = sample_batches(rows, objective, recipe.training.batch_bounds)
    trial = Prepared(chosen, prepared.labels, {}, {})
    trial_plan = _plan_of(chosen, recipe, plan)
    _reset_peak(plan.device)
    with TemporaryDirectory(prefix="modiste-trial-") as folder:
        times, worked = _run(Job(_alone(recipe), trial, base, trial_plan, Path(folder)))
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    peak = peak_bytes(plan.device)
    free_memory()
    tokens = [int(json.loads(line)["tokens"]) for line in lines]
    each = seconds_per_token(times, tokens)
    alone = each  # a GPU's time is not the processor's
    if plan.device == "cpu":
        alone = min(each, seconds_per_token(worked, tokens) / plan.threads)
    forward = (_FORWARD_SHARE + objective.passes - 1) / objective.passes
    whole = plan.tokens + forward * _validated(recipe, prepared, plan)
    return Estimate(
        seconds=each * whole,
        seconds_alone=alone * whole,
        peak_bytes=peak,
        tokens_per_second=1 / each,
        steps_measured=len(tokens) - 1,
        took_seconds=time.monotonic() - started,
        load=load,
    )


def _alone(recipe: Recipe) -> Recipe:
    """The recipe without what needs a validation part, or tells others of the run."""
    without: dict[str, Any] = {
        "report_to": [], "best_by": None, "patience": None, "keep_epochs": 0
    }  # fmt: skip
    training = recipe.training.model_copy(update=without)
    return recipe.model_copy(update={"training": training})


def sample_batches(
    rows: Sequence[Row], objective: Objective, bounds: BatchBounds | int
) -> list[Row]:
    """The rows of a few batches: those with most supervised tokens, and some of every length."""
    widths, spoken = list(map(objective.width, rows)), list(map(objective.spoken, rows))
    batches = make_batches(widths, bounds)  # from short to long
    heaviest = max(batches, key=lambda batch: sum(spoken[i] for i in batch))
    places = [round((len(batches) - 1) * k / (_STEPS - 1)) for k in range(_STEPS)]
    chosen = {i for place in places for i in batches[place]} | set(heaviest)
    return [rows[i] for i in sorted(chosen)]


def seconds_per_token(times: Sequence[float], tokens: Sequence[int]) -> float:
    """Median over steps of a step's time by its tokens; the first step only warms up.

    Args:
        times: seconds at which each step ended, [S], S > 1.
        tokens: of each step, [S].
    """
    spans = [after - before for before, after in pairwise(times)]
    return statistics.median(s / max(t, 1) for s, t in zip(spans, tokens[1:], strict=True))


def _plan_of(rows: list[Row], recipe: Recipe, plan: Plan) -> Plan:
    """The trial's own plan: as many passes over its few batches as its steps need."""
    objective = objective_of(recipe.training)
    widths = list(map(objective.width, rows))
    batches = len(make_batches(widths, recipe.training.batch_bounds))
    tokens = sum(map(objective.tokens, rows))
    return replace(plan, batches_per_epoch=batches, steps=_STEPS + 1, tokens=tokens)


def _run(job: Job) -> tuple[list[float], list[float]]:
    """Train until enough is known; returns when steps ended, by the clock and by work done."""
    times: list[float] = []
    worked: list[float] = []

    def stop() -> bool:
        times.append(time.perf_counter())
        worked.append(time.process_time())  # of all threads; those that wait sleep
        took = times[-1] - times[0]  # without loading the model and warming up
        return (len(times) > 2 and took > _BUDGET_S) or (len(times) > 1 and took > _LIMIT_S)

    progress = Progress(job.plan.tokens, Console(quiet=True))
    with suppress(Interrupted):
        train(job, stop=stop, progress=progress)
    return times, worked


def _validated(recipe: Recipe, prepared: Prepared, plan: Plan) -> int:
    """Tokens that go through the model for validation in the whole run."""
    objective = objective_of(recipe.training)
    rows = usable_rows(prepared.of("validation"), objective)
    once = sum(map(objective.tokens, rows))
    return once * -(-plan.steps // recipe.training.checkpoint_every_steps)


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # else it is the peak since the process began
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident


def peak_bytes(device: str) -> int:
    """The most memory that was in use since it was last reset."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
