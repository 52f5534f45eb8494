"""What is known about the data before any training, and what stops a run.

Most tuning that goes wrong goes wrong here: no token to learn from, held-out examples
that were trained on, one label only. Such things are errors; the rest are warnings.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from adapters.errors import InvalidInput
from finetune.config import Recipe
from finetune.data import Prepared
from finetune.plan import Plan

_FEW_TRAIN, _FEW_TEST = 50, 30
_IMBALANCE = 10


@dataclass(slots=True)
class Report:
    """Counts, errors and warnings."""

    examples: dict[str, int]
    tokens: int
    supervised_tokens: int
    longest: int
    truncated: int
    unsupervised: int
    duplicates: int
    contradictions: int
    leaked: int
    labels: dict[str, int]
    counts: dict[str, int]
    plan: dict[str, Any]
    seconds: float
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class PreflightFailed(InvalidInput):
    """The data cannot be trained on; says every reason."""

    def __init__(self, report: Report) -> None:
        lines = "".join(f"\n  {error}" for error in report.errors)
        super().__init__(f"preflight found {len(report.errors)} error(s):{lines}", param="data")
        self.report = report


def check(prepared: Prepared, recipe: Recipe, plan: Plan) -> Report:
    """Look at all rows; the report has the errors, nothing is raised."""
    train, test = prepared.of("train"), prepared.of("test")
    pairs = Counter((row.key, tuple(row.references)) for row in train)
    answers: dict[str, set[str]] = {}
    for row in train:
        answers.setdefault(row.key, set()).add(row.references[0])
    labels = dict.fromkeys(prepared.labels, 0)
    if recipe.task == "classify":
        labels |= Counter(row.references[0] for row in train)
    report = Report(
        examples={split: len(prepared.of(split)) for split in ("train", "validation", "test")},
        tokens=sum(len(row.ids) for row in train),
        supervised_tokens=sum(len(row.supervised) for row in train),
        longest=max((len(row.ids) for row in train), default=0),
        truncated=sum(row.truncated for row in train),
        unsupervised=sum(not row.supervised for row in train),
        duplicates=sum(pairs.values()) - len(pairs),
        contradictions=sum(len(said) > 1 for said in answers.values()),
        leaked=len({row.key for row in test} & answers.keys()),
        labels=labels,
        counts=prepared.counts,
        plan=dataclasses.asdict(plan),
        seconds=plan.seconds,
    )
    _find_errors(report, recipe, prepared)
    _find_warnings(report)
    return report


def _find_errors(report: Report, recipe: Recipe, prepared: Prepared) -> None:
    if report.examples["train"] == 0:
        report.errors.append("no training examples: check data.train")
    elif report.supervised_tokens == 0:
        report.errors.append(
            "no supervised tokens: nothing of any answer is left to learn from; "
            f"raise training.max_length ({recipe.training.max_length}) or shorten the prompt"
        )
    if prepared.separate_test and report.examples["test"] == 0:
        report.errors.append("no held-out examples: check data.test")
    if report.leaked:
        report.errors.append(
            f"{report.leaked} held-out inputs are also in the training data: "
            "remove them from one side, or leave out data.test to have a clean part held out"
        )
    if recipe.task == "classify" and sum(count > 0 for count in report.labels.values()) < 2:
        report.errors.append("the training examples have one label only: add the others")


def _find_warnings(report: Report) -> None:
    warn = report.warnings.append
    if 0 < report.examples["train"] < _FEW_TRAIN:
        warn(f"only {report.examples['train']} training examples")
    if report.examples["test"] < _FEW_TEST:
        warn(f"only {report.examples['test']} held-out examples: intervals will be wide")
    if report.truncated:
        warn(f"{report.truncated} examples are cut to training.max_length; their ends are lost")
    if report.unsupervised:
        warn(f"{report.unsupervised} examples have no supervised token left and are not used")
    if report.duplicates:
        warn(f"{report.duplicates} training examples are exact duplicates of others")
    if report.contradictions:
        warn(f"{report.contradictions} training inputs have several different answers")
    report.warnings += [f"{count} {reason} left out" for reason, count in report.counts.items()]
    _find_label_warnings(report)


def _find_label_warnings(report: Report) -> None:
    warn = report.warnings.append
    if empty := [label for label, count in report.labels.items() if count == 0]:
        warn(f"no training example has the label {', '.join(empty)[:200]}")
    present = [count for count in report.labels.values() if count]
    if present and max(present) > _IMBALANCE * min(present):
        warn(f"the commonest label has {max(present)} examples, the rarest {min(present)}")


def show(report: Report, console: Console) -> None:
    """Print the report as a table with its warnings and errors."""
    table = Table(show_header=False, box=None)
    rows: list[tuple[str, str]] = [
        ("examples", ", ".join(f"{n} {split}" for split, n in report.examples.items() if n)),
        ("tokens", f"{report.tokens:,}, of them {report.supervised_tokens:,} supervised"),
        ("longest example", f"{report.longest:,} tokens; {report.truncated} cut"),
        ("exact duplicates", str(report.duplicates)),
        ("held-out inputs in train", str(report.leaked)),
    ]
    if report.labels:
        top = sorted(report.labels.items(), key=lambda item: -item[1])[:8]
        more = f", … ({len(report.labels)} in all)" if len(report.labels) > len(top) else ""
        rows.append(("labels", ", ".join(f"{name} {count}" for name, count in top) + more))
    plan = report.plan
    machine = f"{plan['device']}, {plan['dtype']}, {plan['threads']} threads"
    if plan["micro_batch_tokens"] is not None:
        machine += f", {plan['micro_batch_tokens']} tokens at once"
    if plan["activation_checkpointing"]:
        machine += ", activations computed twice"
    rows.append(("machine", machine))
    rows.append(
        ("training", f"{plan['steps']} steps, {plan['tokens']:,} tokens, "
                     f"about {duration(report.seconds)}")
    )  # fmt: skip
    for name, value in rows:
        table.add_row(name, value)
    notes = [f"[yellow]warning[/] {escape(text)}" for text in report.warnings]
    notes += [f"[red]error[/] {escape(text)}" for text in report.errors]
    console.print(Group(table, *notes))


def escape(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")


def duration(seconds: float) -> str:
    """`95` -> `1 min 35 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
