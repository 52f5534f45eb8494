"""What is known about the data before any training, and what stops a run.

Most tuning that goes wrong goes wrong here: no token to learn from, held-out examples
that were trained on, one label only. Such things are errors; the rest are warnings
(`findings.CODES`). A report holds counts and places, never texts of the data.
"""

import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from adapters.prompt import Task
from finetune.config import Recipe
from finetune.data import SPLITS, Prepared, Row
from finetune.duplicates import folded
from finetune.findings import Finding, finding, in_order
from finetune.languages import languages_of
from finetune.objectives import Objective, objective_of
from finetune.plan import Plan
from finetune.sandbox import statements
from finetune.sides import Sides, compare_sides
from finetune.text_checks import TextChecks, wrong_languages

_FEW_TRAIN, _FEW_TEST = 50, 30
_IMBALANCE = 10
_MANY_LABELS, _LIST_SHARE = 20, 0.5
_MEMORY_SHARE = 0.9
_BARS = 12


@dataclass(slots=True)
class Report:
    """Counts and findings."""

    name: str
    task: Task
    examples: dict[str, int]
    tokens: int
    """Of the training examples, as all counts of tokens here; a preference has both answers."""
    supervised_tokens: int
    longest: int
    lengths: list[tuple[int, int]]
    """Most tokens of an example, and how many examples are as long but no shorter bar has."""
    truncated: int
    lost_tokens: int
    """Of answers, cut off."""
    unsupervised: int
    sides: Sides
    labels: dict[str, int]
    languages: dict[str, dict[str, int]]
    """`input` and `answer` -> language -> texts of a sample."""
    sensitive: dict[str, int]
    """Kind of personal data or secret -> how often it was found."""
    counts: dict[str, int]
    plan: dict[str, Any]
    findings: list[Finding]
    estimate: dict[str, Any] | None = None
    """What training will take, as measured in a few steps."""

    @property
    def errors(self) -> list[str]:
        return [found.message for found in self.findings if found.level == "error"]

    @property
    def warnings(self) -> list[str]:
        return [found.message for found in self.findings if found.level == "warning"]

    def to_json(self) -> dict[str, Any]:
        counts = {"error_count": len(self.errors), "warning_count": len(self.warnings)}
        return {**dataclasses.asdict(self), **counts}


@dataclass(slots=True)
class _Sums:
    """Over the training examples; what they are is told in `Report`."""

    tokens: int = 0
    spoken: int = 0
    truncated: int = 0
    lost: int = 0
    unsupervised: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, row: Row, objective: Objective) -> None:
        self.tokens += objective.tokens(row)
        self.spoken += objective.spoken(row)
        self.truncated += row.truncated
        self.lost += row.lost
        self.unsupervised += not objective.usable(row)
        self.lengths.append(row.longest)


def check(
    prepared: Prepared, recipe: Recipe, plan: Plan, special_tokens: tuple[str, ...] = ()
) -> Report:
    """Look at all rows; the report has the errors, nothing is raised.

    Args:
        special_tokens: control tokens of the base, which no text should have.
    """
    train, objective = prepared.of("train"), objective_of(recipe.training)
    labels = dict.fromkeys(prepared.labels, 0)
    texts, sums = TextChecks(recipe, special_tokens), _Sums()
    for row in prepared.rows:  # a row is read from the disk each time
        texts.add(row)
        if row.split == "train":
            sums.add(row, objective)
            if recipe.task == "classify":
                labels[row.references[0]] = labels.get(row.references[0], 0) + 1
    report = Report(
        name=recipe.name,
        task=recipe.task,
        examples={split: len(prepared.of(split)) for split in SPLITS},
        tokens=sums.tokens,
        supervised_tokens=sums.spoken,
        longest=max(sums.lengths, default=0),
        lengths=_histogram(sums.lengths),
        truncated=sums.truncated,
        lost_tokens=sums.lost,
        unsupervised=sums.unsupervised,
        sides=compare_sides(prepared, recipe.task),
        labels=labels,
        languages=languages_of(train, answers=recipe.task != "classify"),
        sensitive=dict(texts.sensitive),
        counts=prepared.counts,
        plan=dataclasses.asdict(plan),
        findings=[],
    )
    report.findings = in_order(
        [
            *_size_findings(report, recipe, prepared),
            *report.sides.findings(),
            *_label_findings(report, prepared),
            *_list_findings(recipe, prepared),
            *texts.findings(),
            *wrong_languages(recipe, report.languages),
        ]
    )
    return report


def add_estimate(report: Report, estimate: dict[str, Any], memory: int) -> None:
    """Put in what was measured.

    Args:
        memory: bytes of the machine or the device.
    """
    report.estimate = estimate | {"memory_bytes": memory}
    peak = estimate["peak_bytes"]
    if peak > _MEMORY_SHARE * memory:
        told = (
            f"training took {peak / 2**30:.1f} GiB of the {memory / 2**30:.1f} there are: "
            "lower training.micro_batch_tokens, training.batch_tokens or training.max_length"
        )
        report.findings = in_order([*report.findings, finding("not_enough_memory", told, 1)])


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Examples by length, in bars of one width."""
    width = max(-(-max(lengths, default=0) // _BARS), 1)
    bars = Counter(max(length - 1, 0) // width for length in lengths)
    return [((bar + 1) * width, bars[bar]) for bar in range(max(bars, default=-1) + 1)]


def _size_findings(report: Report, recipe: Recipe, prepared: Prepared) -> Iterator[Finding]:
    train, test = report.examples["train"], report.examples["test"]
    limit = f"training.max_length ({recipe.training.max_length})"
    if train == 0:
        yield finding("no_training_examples", "no training examples: check data.train", 1)
    elif report.unsupervised == train:
        told = "no supervised tokens: nothing of any answer is left to learn from; "
        yield finding("no_supervised_tokens", f"{told}raise {limit} or shorten the prompt", train)
    elif train < _FEW_TRAIN:
        yield finding("few_training_examples", f"only {train} training examples", train)
    if prepared.separate_test and test == 0:
        yield finding("no_held_out_examples", "no held-out examples: check data.test", 1)
    yield from _assert_findings(recipe, prepared)
    if test < _FEW_TEST:
        told = f"only {test} held-out examples: intervals will be wide"
        yield finding("few_held_out_examples", told, test)
    rows = prepared.of("train")
    if report.truncated:
        spoken = report.lost_tokens + report.supervised_tokens
        told = f"{report.truncated} examples are cut to {limit}; with their ends, "
        told += f"{report.lost_tokens} of {spoken} tokens of answers are lost"
        places = (row.origin for row in rows if row.truncated)
        yield finding("truncated", told, report.truncated, places)
    if report.unsupervised:
        told = f"{report.unsupervised} examples have no supervised token left and are not used"
        usable = objective_of(recipe.training).usable
        places = (row.origin for row in rows if not usable(row))
        yield finding("unsupervised", told, report.unsupervised, places)
    if report.counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.counts.items())
        yield finding("left_out", f"left out: {reasons}", sum(report.counts.values()))


def _assert_findings(recipe: Recipe, prepared: Prepared) -> Iterator[Finding]:
    column, rows = recipe.evaluation.asserts, prepared.of("test")
    if column is None or not rows:
        return
    if not any(statements(row.columns.get(column, "")).strip() for row in rows):
        told = f"no held-out example has asserts in {column!r}: check evaluation.asserts"
        yield finding("no_asserts", told, len(rows))


def _label_findings(report: Report, prepared: Prepared) -> Iterator[Finding]:
    if report.task != "classify":
        return
    labels = report.labels
    if sum(count > 0 for count in labels.values()) < 2:
        yield finding("one_label", "the training examples have one label only: add the others", 1)
    tested = {row.references[0] for row in prepared.of("test")}
    if empty := [label for label, count in labels.items() if count == 0]:
        told = f"no training example has the label {', '.join(empty)[:200]}"
        yield finding("empty_labels", told, len(empty))
    if unlearned := sorted(label for label in tested if not labels.get(label)):
        told = f"only held-out examples have the label {', '.join(unlearned)[:200]}"
        yield finding("unlearned_labels", told, len(unlearned))
    present = [count for count in labels.values() if count]
    if present and max(present) > _IMBALANCE * min(present):
        told = f"the commonest label has {max(present)} examples, the rarest {min(present)}"
        yield finding("imbalance", told, 1)
    spellings: dict[str, list[str]] = {}
    for label in labels:
        spellings.setdefault(folded(label) or label, []).append(label)
    if twice := [same for same in spellings.values() if len(same) > 1]:
        told = "; ".join(" and ".join(map(repr, same)) for same in twice)[:200]
        yield finding("label_spellings", f"labels look like one: {told}", len(twice))


def _list_findings(recipe: Recipe, prepared: Prepared) -> Iterator[Finding]:
    """Whether training would go into reading the same list of labels again and again."""
    rows, template = prepared.of("train"), recipe.template
    listed = recipe.task == "classify" and "{labels}" in f"{template.system}{template.user}"
    if not listed or not rows or len(prepared.labels) < _MANY_LABELS:
        return
    first, last = (found(row.prompt_ids for row in rows) for found in (min, max))
    edges = zip(first, last, strict=False)  # what these two begin with, all do
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], edges))
    share = shared * len(rows) / sum(len(row.ids) for row in rows)
    if share > _LIST_SHARE:
        told = f"{share:.0%} of the tokens are the list of {len(prepared.labels)} labels: "
        told += "the recipe classify-many leaves it out of the prompt, and trains faster"
        yield finding("long_label_list", told, len(rows))


def duration(seconds: float) -> str:
    """`95` -> `1 min 35 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
