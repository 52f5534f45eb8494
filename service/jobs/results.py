"""The result file of a fine-tuning job: the figures of every step as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

_COLUMNS = {
    "step": "step", "loss": "train_loss", "validation_loss": "valid_loss",
    "learning_rate": "learning_rate", "tokens": "tokens",
}  # fmt: skip
"""Of metrics.jsonl, and as OpenAI's file calls them."""


def metrics_csv(entries: Iterable[Mapping[str, Any]]) -> str:
    """A line for each step; what a step has no figure for stays empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_COLUMNS.values())
    for entry in entries:
        writer.writerow([entry.get(name, "") for name in _COLUMNS])
    return out.getvalue()
