"""The adapters of the ends of a run's last epochs, which become versions beside the final one.

    epochs/step-00000050/{adapter_model.safetensors, adapter_config.json}

They are written while training goes on, and before the checkpoint of the same step: a run that is
killed and resumed has those of one that was not.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.metric_names import sign_of
from finetune.metrics_file import read_metrics
from finetune.options import Training
from finetune.plan import Plan

EPOCHS = "epochs"
_TOLD = ("loss", "reward_accuracy")
"""Figures that are told of a step, those on validation examples aside."""


class Keeper:
    """Keeps the adapters of a run's folder.

    Args:
        save: writes a model's adapter to a folder, whole or not at all.
    """

    def __init__(
        self, folder: Path, options: Training, plan: Plan, save: Callable[[Any, Path], Path]
    ) -> None:
        self._folder, self._save, self._count = folder / EPOCHS, save, options.keep_epochs
        ends = range(plan.batches_per_epoch, plan.steps, plan.batches_per_epoch)
        # where training may end early, nobody knows yet which epochs are the last ones
        early = options.patience is not None
        self._steps = frozenset(ends if early else ends[max(len(ends) - self._count, 0) :])
        self._spare = 1 if early else 0
        """The last one may turn out to be the final adapter's step."""

    def look(self, model: Any, step: int) -> None:
        """Keep the adapter as it is after a step, where that ends one of the last epochs."""
        if not self._count or step not in self._steps:
            return
        self._save(model, self._folder / f"step-{step:08d}")
        steps = [path for path in _folders(self._folder) if step_of(path) <= step]
        for old in steps[: -(self._count + self._spare)]:
            shutil.rmtree(old)


def kept_adapters(folder: Path, options: Training, final: int) -> list[Path]:
    """Folders of the adapters that a run kept, oldest first.

    Args:
        final: the last step of the run; its adapter is the run's own.
    """
    if not options.keep_epochs:
        return []
    before = [path for path in _folders(folder / EPOCHS) if step_of(path) < final]
    return before[-options.keep_epochs :]


def step_of(path: Path) -> int:
    """Steps done when an adapter was kept."""
    return int(path.name.removeprefix("step-"))


def figures_of(folder: Path, step: int) -> dict[str, float]:
    """What metrics.jsonl tells of the model after a step, by the names it has there."""
    for entry in read_metrics(folder / "metrics.jsonl"):
        if entry["step"] == step:
            return {
                name: value for name, value in entry.items()
                if name in _TOLD or name.startswith("validation_")
            }  # fmt: skip
    return {}


def final_step(folder: Path) -> int:
    """Steps done in a run that is trained."""
    entries = read_metrics(folder / "metrics.jsonl")
    return int(entries[-1]["step"]) if entries else 0


def chosen_step(folder: Path, options: Training) -> int:
    """The step whose adapter is the run's: the last one, or the best by `training.best_by`."""
    key = f"validation_{options.best_by}"
    measured = [e for e in read_metrics(folder / "metrics.jsonl") if key in e]
    if options.best_by is None or not measured:
        return final_step(folder)
    sign = sign_of(options.best_by)
    best = max(measured, key=lambda entry: sign * float(entry[key]))  # the first of equal ones
    return int(best["step"])


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []
