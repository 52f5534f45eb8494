"""One trial of a sweep: an ordinary run up to the trained adapter, measured on validation examples.

HOME/runs/NAME-<recipe digest>/validation.json     the figure, beside what a run writes
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapters.digests import digest_file
from adapters.errors import InvalidInput
from finetune import metrics
from finetune.data import Row, data_files, source_digests
from finetune.divergence import Diverged
from finetune.evaluate import examined, measured_on
from finetune.measures import measure
from finetune.metric_names import LOWER_IS_BETTER
from finetune.metrics import Figure, Measured
from finetune.metrics_file import read_metrics
from finetune.objectives import objective_of, usable_rows
from finetune.run import Run, steps_to_run
from finetune.slices import positions_of
from finetune.subjects import Subject
from finetune.sweep_config import Aim
from finetune.sweep_study import FULL, Result

Behind = Callable[[int, float], bool]
"""Told thousandths of training and a figure; whether the trial should end."""


class Pruned(Exception):
    """Training was ended because the trial is behind the others."""


class Course:
    """Follows a run's figures in the course of training, those before it was resumed included.

    Args:
        figure: the one that is followed; `behind` gets it in the direction of `aim`.
    """

    def __init__(self, figure: str, aim: Aim, behind: Behind, *, prune: bool) -> None:
        self._key = f"validation_{figure}"
        self._sign = 1 if (figure in LOWER_IS_BETTER) == aim.lower_is_better else -1
        self._behind, self._prune = behind, prune
        self._told: set[int] = set()

    def __call__(self, run: Run, entry: dict[str, Any]) -> None:
        """Take note of a regular checkpoint.

        Raises:
            Pruned: the trial is behind.
        """
        steps = run.plan.steps
        behind = False
        for known in read_metrics(run.folder / "metrics.jsonl"):
            share = round(FULL * known["step"] / steps)
            value = known.get(self._key)
            if value is None or share in self._told or not math.isfinite(value):
                continue
            self._told.add(share)
            behind = self._behind(share, self._sign * value)
        if behind and self._prune:
            at = f"{entry[self._key]:.4g} at step {entry['step']} of {steps}"
            raise Pruned(f"{self._key} is {at}, and never beat the median of the others")


def run_trial(run: Run, aim: Aim, data: dict[str, dict[str, str]], precision: Path) -> Result:
    """Train, from where an earlier process left off, and measure.

    Args:
        data: digests of the files as they were when the sweep began.
        precision: the sweep's file of that name: trials in several dtypes would not compare.

    Raises:
        Interrupted: it was asked to stop; the checkpoint is written.
        AdapterError: the recipe's settings or data are no good.
        InvalidInput: the data changed since the sweep began.
    """
    with run.locked():
        if source_digests(data_files(run.recipe.data)) != data:
            raise DataChanged
        if run.is_done("prepare") and not _is_current(run):
            run.prepare()  # an earlier run on other data
        try:
            for step, work in steps_to_run(run, "train"):
                if step == "check":
                    _copy(precision, run.folder / precision.name)
                work()
        except Pruned as pruned:
            return Result("pruned", reason=str(pruned))
        except Diverged as diverged:
            return Result("diverged", reason=diverged.message)
        _copy(run.folder / precision.name, precision)
        found = _measured(run, aim)
    if not math.isfinite(found.value):
        return Result("diverged", reason=f"{aim.metric} on validation examples is {found.value}")
    return Result("finished", found.value, found.low, found.high)


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and not target.exists():
        shutil.copyfile(source, target)


class DataChanged(InvalidInput):
    """Figures of a sweep's trials would not compare any more."""

    def __init__(self) -> None:
        super().__init__(
            "the data changed while the sweep ran",
            hint="the same command begins a new sweep on the data as it is now",
            param="data",
        )


def _is_current(run: Run) -> bool:
    try:
        run.check_unchanged()
    except InvalidInput:
        return False
    return True


def _measured(run: Run, aim: Aim) -> Figure:
    """The trial's figure, measured once."""
    path = run.folder / "validation.json"
    weights = digest_file(run.folder / "adapter" / "adapter_model.safetensors")
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get("adapter") == weights:
        return Figure(known["value"], known["low"], known["high"])
    found = figure_of(run, aim)
    value = {"value": found.value, "low": found.low, "high": found.high}
    run.write("validation.json", {"metric": aim.metric, **value, "adapter": weights})
    return found


def figure_of(run: Run, aim: Aim) -> Figure:
    """The figure of a run's adapter on its validation examples, with its interval.

    Raises:
        InvalidInput: no validation example is left to measure it on.
    """
    recipe = run.recipe
    rows = examined(recipe, run.prepared, "validation")
    if aim.by_training:
        rows = list(usable_rows(rows, objective_of(recipe.training)))
        measured = _as_training_does(run, aim.metric, rows) if rows else None
    else:
        subject = Subject(run.adapted_model(), run.tokenizer, recipe, rows, run.prepared.labels)
        found = measure(subject) if rows else None
        measured = None if found is None else measured_on(found, recipe, aim.metric, aim.part)
    over = np.arange(0) if measured is None else measured.over
    if measured is not None and measured.support is None:  # else the label is in the metric
        over = np.intersect1d(over, positions_of(aim.part, rows))
    if measured is None or not len(over):
        where = f" with {aim.part}" if str(aim.part) else ""
        raise InvalidInput(
            f"no validation example{where} has anything to measure {aim.metric} on",
            hint="check data.validation or raise data.validation_fraction",
            param="data.validation",
        )
    samples, seed = recipe.evaluation.bootstrap_samples, recipe.training.seed
    return metrics.resample(measured.score, over, samples, seed).figure()


def _as_training_does(run: Run, figure: str, rows: list[Row]) -> Measured:
    """The loss, or another figure of the objective, over all that is learned from the rows."""
    objective, model = objective_of(run.recipe.training), run.adapted_model()
    totals = []
    with torch.no_grad():
        for row in rows:
            losses = objective.losses(model, [row])
            values = losses.values if figure == "loss" else losses.figures[figure]
            totals.append(float(values.sum()))
    score = metrics.ratio(totals, [objective.units(row) for row in rows])
    return Measured(score, np.arange(len(rows)))
