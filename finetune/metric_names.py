"""What is measured for each task: names, units, and which gates can ask for them.

Reads parsed YAML alone, so that a wrong gate is told before anything heavy is imported.
"""

import re
from collections.abc import Iterator
from typing import Any

from adapters.prompt import Task

UNITS: dict[Task, dict[str, str]] = {
    "translate": {
        "chrf": "chrF", "chrf++": "chrF++", "bleu": "BLEU",
        "placeholders": "share of texts with placeholders that keep them all",
    },
    "answer": {"exact_match": "share", "f1": "share"},
    "classify": {
        "accuracy": "share",
        "macro_precision": "share", "macro_recall": "share", "macro_f1": "share",
        "ece": "expected calibration error, lower is better",
    },
    "generate": {
        "perplexity": "lower is better", "loss": "nats a token, lower is better",
        "rouge_l": "ROUGE-L F1", "json_valid": "share", "pattern": "share",
        "pass@1": "share of answers whose code passes its asserts",
        "preference_accuracy": "share of pairs whose preferred answer is the likelier one",
    },
}  # fmt: skip
LOWER_IS_BETTER = frozenset({"ece", "perplexity", "loss"})
OF_A_LABEL = ("precision", "recall", "f1")
"""Of classify, for a gate that names a label."""

_CHECKS = {"json_valid": "valid_json", "pattern": "pattern", "pass@1": "asserts"}
"""Metric to the key of the section evaluation that asks for it."""

Problem = tuple[str, Any, str, str]
"""Dotted key, value, what is wrong, what to do."""


def sign_of(metric: str | None) -> int:
    """1 where more is better, -1 where less is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def check_pattern(value: str) -> str:
    """Return a regular expression unchanged; raises ValueError when it is none."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return value


def evaluation_problems(task: Task, recipe: dict[str, Any]) -> list[Problem]:
    """What contradicts the rest of a recipe in its sections evaluation and gate, as parsed."""
    evaluation, gate = mapping(recipe.get("evaluation")), recipe.get("gate")
    found: list[Problem] = [
        (f"evaluation.{key}", evaluation[key], f"is not for the task {task}", "leave it out")
        for key in _CHECKS.values()
        if task != "generate" and key in evaluation and not _is_off(evaluation[key])
    ]
    if not isinstance(gate, dict):
        return found
    if _is_off(evaluation.get("compare_live", True)) and gate.get("over_live", 0) is not None:
        remedy = "set gate.over_live to null, or leave evaluation.compare_live out"
        found.append(("gate.over_live", None, "needs evaluation.compare_live", remedy))
    labels = mapping(recipe.get("data")).get("labels")
    for key, part in _parts(gate):
        found += _part_problems(task, key, part, evaluation, labels)
    return found


def _part_problems(
    task: Task, key: str, part: dict[str, Any], evaluation: dict[str, Any], labels: Any
) -> Iterator[Problem]:
    metric, label = part.get("metric"), part.get("label")
    known = [name for name in UNITS[task] if name not in _CHECKS]
    known += [
        name
        for name, key in _CHECKS.items()
        if task == "generate" and not _is_off(evaluation.get(key))
    ]
    of_label = task == "classify" and metric in OF_A_LABEL
    if isinstance(metric, str) and metric not in known and not of_label:
        more = f"; {', '.join(OF_A_LABEL)} of a label" if task == "classify" else ""
        if metric in _CHECKS and task == "generate":
            more = f"; evaluation.{_CHECKS[metric]} adds {metric}"
        remedy = f"measured: {', '.join(known)}{more}"
        yield f"{key}.metric", metric, f"is no metric of {task}", remedy
    if of_label and label is None:
        yield f"{key}.metric", metric, "is of a label, and none is named", f"give {key}.label"
    if label is not None and task != "classify":
        yield f"{key}.label", label, f"is not for the task {task}", "leave it out"
    elif label is not None and isinstance(labels, list) and label not in labels:
        yield (
            f"{key}.label",
            label,
            "is none of data.labels",
            f"one of {', '.join(map(str, labels))}",
        )


def _parts(gate: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "gate", gate
    keep = gate.get("keep")
    for number, part in enumerate(keep if isinstance(keep, list) else []):
        if isinstance(part, dict):
            yield f"gate.keep.{number}", part


def _is_off(value: Any) -> bool:
    """As YAML and pydantic take it: texts such as `no` are not parsed yet."""
    return value in (None, False) or str(value).lower() in ("false", "no", "off", "f", "n")


def mapping(value: Any) -> dict[str, Any]:
    """A section of a recipe as parsed; what is none has no keys."""
    return value if isinstance(value, dict) else {}
