"""The adapter against its base and the live version, on the same held-out examples and resamples.

What is measured for each task stands in `measures.py`. A recipe's gate is judged here, so that
its verdict is in the report before anything is published.
"""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapters.bases import Base
from adapters.gate import Gain, Opponent, Slice, judge
from finetune import metrics
from finetune.base_model import load_model
from finetune.config import Recipe
from finetune.data import Prepared, Row, Split
from finetune.files import write_whole
from finetune.live import Live, subject_of, worn
from finetune.measures import Outcome, measure, of_label
from finetune.metric_names import OF_A_LABEL, UNITS, sign_of
from finetune.metrics import Measured, Sampled
from finetune.slices import positions_of
from finetune.subjects import Subject, Told


def load_adapter(base: Base, adapter: Path, dtype: str, device: str) -> Any:
    """The base model with a trained adapter, which `disable_adapter` takes off again."""
    model = PeftModel.from_pretrained(load_model(base.path, dtype, device), str(adapter))
    return model.eval()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What each model did with the same examples."""

    recipe: Recipe
    rows: list[Row]
    outcomes: dict[str, Outcome]
    """By `base`, `adapter` and, where it is compared, `live`."""
    live: Live | None

    def sampled(self, found: Measured) -> Sampled:
        return self._resample(found, found.over)

    def _resample(self, found: Measured, over: metrics.Positions) -> Sampled:
        samples, seed = self.recipe.evaluation.bootstrap_samples, self.recipe.training.seed
        return metrics.resample(found.score, over, samples, seed)

    def gain(self, metric: str, part: Slice, against: Opponent) -> Gain | str:
        """How much better the adapter is in a metric on a slice, or why that can't be told."""
        if against not in self.outcomes:
            reason = self.live.reason if against == "live" and self.live is not None else ""
            return reason or "nothing is held out"
        pair = [self._find(metric, part, who) for who in ("adapter", against)]
        ours, other = pair
        if ours is None or other is None:
            return f"no held-out example has {part}" if str(part) else "no example to measure it on"
        over = ours.over
        if ours.support is None:  # else the label is in the metric itself
            over = np.intersect1d(over, positions_of(part, self.rows))
        if not len(over):
            return f"no held-out example has {part}"
        mine, theirs = self._resample(ours, over), self._resample(other, over)
        better = mine.minus(theirs).times(sign_of(metric))
        assert self.recipe.gate is not None  # noqa: S101  # who asks has one
        return Gain(
            ours=mine.value, other=theirs.value, gain=better.value,
            bound=better.bound(self.recipe.gate.confidence),
            examples=len(over) if ours.support is None else ours.support,
        )  # fmt: skip

    def _find(self, metric: str, part: Slice, who: str) -> Measured | None:
        return measured_on(self.outcomes[who], self.recipe, metric, part)


def measured_on(outcome: Outcome, recipe: Recipe, metric: str, part: Slice) -> Measured | None:
    """A metric of one model on a slice; None where it was not measured there."""
    found = outcome.measured.get(metric)
    if metric in OF_A_LABEL and recipe.task == "classify" and part.label is not None:
        found = of_label(outcome, metric, part.label)
    return found


def evaluate(
    model: Any, tokenizer: Any, recipe: Recipe, prepared: Prepared, live: Live | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure base, adapter and live version in this process.

    Returns:
        The report, and what each example got.
    """
    started = time.monotonic()
    rows = examined(recipe, prepared)
    subject = Subject(model, tokenizer, recipe, rows, prepared.labels)
    outcomes = {who: measure(one) for who, one in _each_model(subject, live)} if rows else {}
    return report_of(Comparison(recipe, rows, outcomes, live), started)


def examined(recipe: Recipe, prepared: Prepared, split: Split = "test") -> list[Row]:
    """The held-out examples that are measured, in an order of their own."""
    rows = sorted(prepared.of(split), key=lambda row: row.key)[: recipe.evaluation.max_examples]
    return [row for row in rows if row.supervised] if recipe.task == "generate" else rows


def report_of(compared: Comparison, started: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, with the gate's verdict, and what each example got."""
    recipe, outcomes, live = compared.recipe, compared.outcomes, compared.live
    report: dict[str, Any] = {"name": recipe.name, "task": recipe.task}
    report |= {"examples": len(compared.rows), "live": None, "metrics": {}, "gains": {}}
    if live is not None:
        report["live"] = {
            "reference": live.reference, "identity": live.identity,
            "compared": "live" in outcomes, "reason": live.reason,
        }  # fmt: skip
    if compared.rows:
        report |= _figures(compared)
        report["score_of_each"] = outcomes["adapter"].each_is
        if recipe.task == "classify":
            report["classes"] = _classes(compared)
    if recipe.gate is not None:
        verdict = judge(recipe.gate, None if live is None else live.reference, compared.gain)
        report["gate"] = verdict.model_dump(mode="json")
    report["seconds"] = round(time.monotonic() - started, 1)
    return report, _predictions(compared)


def told_losses(
    model: Any, tokenizer: Any, recipe: Recipe, prepared: Prepared, live: Live | None
) -> dict[str, Told]:
    """Of each model in this process, the losses that a server doesn't tell."""
    subject = Subject(model, tokenizer, recipe, examined(recipe, prepared), prepared.labels)
    if recipe.task != "generate" or not subject.rows:
        return {}
    return {who: _told(one, subject.rows) for who, one in _each_model(subject, live)}


def _told(subject: Subject, asked: list[Row]) -> Told:
    known: Told = {}
    kept = [
        (row.rejected_ids, row.with_rejected()) for row in subject.rows if row.rejected_supervised
    ]
    kept += [(row.ids, own) for row, own in zip(asked, subject.rows, strict=True)]
    totals, counts = subject.losses([own for _, own in kept])
    for (ids, _), total, count in zip(kept, totals, counts, strict=True):
        known[tuple(ids)] = total, count
    return known


def _each_model(subject: Subject, live: Live | None) -> Iterator[tuple[str, Subject]]:
    """Base, adapter and live version, each while it is the one that answers."""
    for who in ("base", "adapter"):
        with subject.model.disable_adapter() if who == "base" else nullcontext():
            yield who, subject
    if live is not None and live.version is not None:
        with worn(subject.model, live.version.folder):
            yield "live", subject_of(live.version, subject)


def _figures(compared: Comparison) -> dict[str, Any]:
    """Every metric with its interval, and the gains over base and live version."""
    entries, gains = {}, {}
    for name, found in compared.outcomes["adapter"].measured.items():
        sampled = {
            who: compared.sampled(outcome.measured[name])
            for who, outcome in compared.outcomes.items()
        }
        figures = {who: values.figure() for who, values in sampled.items()}
        entries[name] = metrics.metric_entry(
            figures["adapter"], figures["base"], figures.get("live"),
            UNITS[compared.recipe.task][name], found.signature,
        )  # fmt: skip
        gains[name] = {
            who: _interval(sampled["adapter"].minus(sampled[who]).times(sign_of(name)))
            for who in ("base", "live") if who in sampled
        }  # fmt: skip
    return {"metrics": entries, "gains": gains}


def _interval(sampled: Sampled) -> dict[str, float]:
    figure = sampled.figure()
    return {"gain": figure.value, "low": figure.low, "high": figure.high}


def _classes(compared: Comparison) -> dict[str, Any]:
    """Figures of each label, confusion and calibration of each model."""
    found = {}
    for who, outcome in compared.outcomes.items():
        decisions = outcome.decisions
        assert decisions is not None  # noqa: S101  # a classifier's outcome has them
        everything = np.arange(len(compared.rows))[None, :]
        kinds = decisions.by_label(everything)
        found[who] = {
            "labels": decisions.labels,
            "confusion": decisions.confusion(),
            "support": [decisions.support(label) for label in decisions.labels],
            **{kind: values[0].tolist() for kind, values in kinds.items()},
            "reliability": outcome.reliability,
        }
    return found


def _predictions(compared: Comparison) -> list[dict[str, Any]]:
    found = []
    for position, row in enumerate(compared.rows):
        entry: dict[str, Any] = {
            "input": row.input,
            "reference": row.references[0] if len(row.references) == 1 else row.references,
            "origin": row.origin,
        }
        for who, outcome in compared.outcomes.items():
            if position < len(outcome.said):
                entry[who] = outcome.said[position]
            entry[f"{who}_score"] = outcome.each[position]
            if outcome.probabilities is not None:
                entry[f"{who}_probabilities"] = outcome.probabilities[position]
        found.append(entry)
    return found


def save_report(report: dict[str, Any], predictions: list[dict[str, Any]], folder: Path) -> None:
    """Write predictions.jsonl, then report.json, which marks the evaluation as whole."""
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for entry in predictions:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_whole(folder / "report.json", text + "\n")


def show(report: dict[str, Any], console: Console) -> None:
    """Print base, adapter and live version side by side, and the gate's verdict."""
    if not report["metrics"]:
        console.print("nothing is held out, so nothing was measured")
    else:
        console.print(_table(report))
    live = report["live"]
    if live is not None and not live["compared"]:
        console.print(f"{live['reference']} is live, not compared: {escape(live['reason'])}")
    if report.get("gate") is not None:
        colour = "green" if report["gate"]["passed"] else "red"
        console.print(f"[{colour}]{escape(report['gate']['reason'])}[/]", soft_wrap=True)


def _table(report: dict[str, Any]) -> Table:
    table = Table(box=None, title=f"{report['examples']} held-out examples", title_justify="left")
    live = report["live"] is not None and report["live"]["compared"]
    for name in ("metric", "base", "adapter", *(["live"] if live else [])):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, m in report["metrics"].items():
        shown = [_shown(m, prefix) for prefix in ("base_", "", *(["live_"] if live else []))]
        table.add_row(name, *shown)
    return table


def _shown(metric: dict[str, Any], prefix: str) -> str:
    value, low, high = (metric[f"{prefix}{part}"] for part in ("value", "low", "high"))
    return f"{value:.3g} ({low:.3g} to {high:.3g})"
