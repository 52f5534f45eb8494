"""A sweep's trials for people and programs: a table, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from finetune.files import write_whole
from finetune.sweep_config import Aim
from finetune.sweep_study import Trial


def best(trials: Sequence[Trial], aim: Aim) -> Trial | None:
    """The trial with the best figure, the earlier one of equals; None: none finished."""
    finished = [trial for trial in trials if trial.value is not None]
    return min(finished, key=lambda trial: _rank(trial, aim), default=None)


def _rank(trial: Trial, aim: Aim) -> float:
    assert trial.value is not None  # noqa: S101  # asked of finished ones alone
    return trial.value if aim.lower_is_better else -trial.value


def figure_of(trial: Trial) -> str:
    """A trial's figure with its interval, or nothing."""
    if trial.value is None:
        return ""
    return f"{trial.value:.4g} ({trial.low:.4g} to {trial.high:.4g})"


def shown(value: Any) -> str:
    """A setting's value as it is written in a recipe."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def table_of(trials: Sequence[Trial], aim: Aim) -> Table:
    """The trials, the best first, then those that did not finish."""
    table = Table(box=None, title="trials, on validation examples", title_justify="left")
    keys = list(trials[0].settings) if trials else []
    figure = f"{aim.metric} on {aim.part}" if str(aim.part) else aim.metric
    table.add_column("", justify="right")
    for name in [*keys, figure, "state"]:
        table.add_column(escape(name))
    table.add_column("minutes", justify="right")
    finished = sorted((t for t in trials if t.value is not None), key=lambda t: _rank(t, aim))
    for trial in [*finished, *(t for t in trials if t.value is None)]:
        settings = [escape(shown(trial.settings[key])) for key in keys]
        state = f"{trial.outcome}: best" if trial == best(trials, aim) else trial.outcome
        minutes = f"{trial.minutes:.1f}"
        table.add_row(str(trial.number), *settings, figure_of(trial), state, minutes)
    return table


def write_csv(path: Path, trials: Sequence[Trial], aim: Aim) -> None:
    """Write the trials in the order in which they were tried, whole or not at all."""
    keys = list(trials[0].settings) if trials else []
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["trial", *keys, aim.metric, "low", "high", "state", "minutes", "run", "reason"])
    for t in trials:
        settings = [shown(t.settings[key]) for key in keys]
        figures = [t.value, t.low, t.high, t.outcome, round(t.minutes, 3), t.run, t.reason]
        lines.writerow([t.number, *settings, *figures])
    write_whole(path, text.getvalue())


def as_json(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials for programs, with `state` for how each ended."""
    found = []
    for trial in trials:
        entry = asdict(trial)
        entry["state"] = entry.pop("outcome")
        found.append(entry)
    return found
