"""The figures of a fine-tuning job as OpenAI's API tells them: its result file, its checkpoints."""

import csv
import io
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

_COLUMNS = {
    "step": "step", "loss": "train_loss", "validation_loss": "valid_loss",
    "learning_rate": "learning_rate", "tokens": "tokens",
}  # fmt: skip
"""Of metrics.jsonl, and as OpenAI's file calls them."""


_OF_CHECKPOINTS = {
    "loss": "train_loss", "validation_loss": "full_valid_loss",
    "reward_accuracy": "train_reward_accuracy",
    "validation_reward_accuracy": "full_valid_reward_accuracy",
}  # fmt: skip
"""Validation takes all its examples, which OpenAI's calls full."""


def checkpoint_metrics(step: int, figures: Mapping[str, float]) -> dict[str, float]:
    """What is known of a checkpoint; nothing of what was not measured, or is no number."""
    told = {
        name: figures[own] for own, name in _OF_CHECKPOINTS.items()
        if own in figures and isfinite(figures[own])
    }  # fmt: skip
    if "full_valid_loss" in told:
        told["valid_loss"] = told["full_valid_loss"]
    return {"step": step, **told}


def metrics_csv(entries: Iterable[Mapping[str, Any]]) -> str:
    """A line for each step; what a step has no figure for stays empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_COLUMNS.values())
    for entry in entries:
        writer.writerow([entry.get(name, "") for name in _COLUMNS])
    return out.getvalue()
