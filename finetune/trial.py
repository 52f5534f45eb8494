"""How long training will take and how much memory it needs, measured in a few real steps.

The real loop trains the real model on some of the real batches, in a folder that is thrown away.
A step's time for each token is taken as their median, so that one step which had to wait for
another process does not spoil it; the peak is what this process held resident at most.
"""

import gc
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

import torch
from rich.console import Console

from adapters.bases import Base
from finetune.batching import make_batches
from finetune.config import Recipe
from finetune.data import Prepared, Row
from finetune.plan import Job, Plan, cores
from finetune.progress import Progress
from finetune.train import Interrupted, train

_STEPS = 5
"""Measured ones; the one before warms up."""
_BUDGET_S, _LIMIT_S = 30.0, 60.0
"""After so long two measured steps are enough, and one."""
_FORWARD_SHARE = 0.35
"""Of a step's time, what a pass without gradients takes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a whole run will take."""

    seconds: float
    """Of training, validation included, evaluation not, with the cores as busy as now."""
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
    """Train some steps and tell what all of them will take.

    Raises:
        Diverged, IncompatibleAdapter: as training would.
    """
    started, load = time.monotonic(), os.getloadavg()[0] / cores()
    rows = [row for row in prepared.of("train") if row.supervised]
    chosen = sample_batches(rows, recipe.training.batch_tokens)
    trial = Prepared(chosen, prepared.labels, {}, {})
    trial_plan = _plan_of(chosen, recipe, plan)
    _reset_peak(plan.device)
    with TemporaryDirectory(prefix="modiste-trial-") as folder:
        times, worked = _run(Job(recipe, trial, base, trial_plan, Path(folder)))
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    peak = peak_bytes(plan.device)
    gc.collect()
    tokens = [int(json.loads(line)["tokens"]) for line in lines]
    each = seconds_per_token(times, tokens)
    alone = each  # a GPU's time is not the processor's
    if plan.device == "cpu":
        alone = min(each, seconds_per_token(worked, tokens) / plan.threads)
    whole = plan.tokens + _FORWARD_SHARE * _validated(recipe, prepared, plan)
    return Estimate(
        seconds=each * whole,
        seconds_alone=alone * whole,
        peak_bytes=peak,
        tokens_per_second=1 / each,
        steps_measured=len(tokens) - 1,
        took_seconds=time.monotonic() - started,
        load=load,
    )


def sample_batches(rows: Sequence[Row], batch_tokens: int) -> list[Row]:
    """The rows of a few batches: those with most supervised tokens, and some of every length."""
    batches = make_batches([len(row.ids) for row in rows], batch_tokens)  # from short to long
    heaviest = max(batches, key=lambda batch: sum(len(rows[i].supervised) for i in batch))
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
    batches = len(make_batches([len(row.ids) for row in rows], recipe.training.batch_tokens))
    tokens = sum(len(row.ids) for row in rows)
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
    once = sum(len(row.ids) for row in prepared.of("validation") if row.supervised)
    return once * -(-plan.steps // recipe.training.checkpoint_every_steps)


def memory_bytes(device: str) -> int:
    """Memory of the GPU, or of this machine or container."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return physical


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
