"""What can be wrong with a recipe, and what its keys forbid each other."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from adapters.errors import InvalidInput
from adapters.prompt import PromptTemplate, Task, changed_prompt
from finetune.data_config import COLUMNS, FORMATS
from finetune.metric_names import evaluation_problems, mapping
from finetune.options import SELECTABLE, Training


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with a recipe."""

    key: str
    value: Any
    problem: str
    remedy: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {str(self.value)[:80]!r}"
        return f"{self.key}{shown}: {self.problem}" + (f" ({self.remedy})" if self.remedy else "")


class RecipeError(InvalidInput):
    """A recipe with mistakes, all of them."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        lines = "".join(f"\n  {mistake}" for mistake in mistakes)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(f"{source} has {count}:{lines}", param=mistakes[0].key)
        self.mistakes = mistakes


def contradictions(raw: dict[str, Any]) -> list[Mistake]:
    """Mistakes between keys; looks at raw values, since others may be wrong as well."""
    task = raw.get("task")
    data = mapping(raw.get("data"))
    if task not in FORMATS:
        return []
    found = []
    for key in ("source_lang", "target_lang"):
        if (data.get(key) is None) == (task == "translate"):
            problem = "is needed" if task == "translate" else f"is not for the task {task}"
            remedy = "a BCP 47 tag such as en or fr-CA" if task == "translate" else "leave it out"
            found.append(Mistake(f"data.{key}", data.get(key), problem, remedy))
    if task != "classify" and data.get("labels") is not None:
        found.append(Mistake("data.labels", data["labels"], f"is not for {task}", "leave it out"))
    chosen, fitting = data.get("format", "auto"), FORMATS[task]
    if chosen in COLUMNS and chosen not in fitting:
        remedy = f"use auto or {' or '.join(fitting)}"
        found.append(Mistake("data.format", chosen, f"does not fit the task {task}", remedy))
    known = {name for form in fitting for name in COLUMNS[form]}
    columns = mapping(data.get("columns"))
    for name in sorted(set(columns) - known, key=str):
        remedy = f"columns of {task}: {', '.join(sorted(known))}"
        found.append(Mistake(f"data.columns.{name}", columns[name], "is no column", remedy))
    found += _split_mistakes(data)
    found += _prompt_mistakes(task, raw.get("prompt"))
    found += _training_mistakes(task, data, mapping(raw.get("training")))
    found += _start_mistakes(raw.get("parent"), mapping(raw.get("training")))
    return found + [Mistake(*problem) for problem in evaluation_problems(task, raw)]


def _start_mistakes(parent: Any, training: dict[str, Any]) -> list[Mistake]:
    if training.get("start") != "parent":
        return []
    if parent is None:
        remedy = "parent: NAME@sha256:…, the version to start from"
        return [Mistake("training.start", "parent", "needs a parent", remedy)]
    if training.get("method") == "dpo":  # its reference is the base without an adapter
        remedy = "training.start: fresh, or training.method: supervised"
        return [Mistake("training.start", "parent", "is not for method dpo", remedy)]
    return []


def _training_mistakes(task: Task, data: dict[str, Any], training: dict[str, Any]) -> list[Mistake]:
    found = []

    def add(key: str, problem: str, remedy: str) -> None:
        found.append(Mistake(f"training.{key}", training.get(key), problem, remedy))

    dpo, best_by = training.get("method") == "dpo", training.get("best_by")
    if dpo and task != "generate":
        add("method", f"is not for {task}", "task: generate, with data of the format preference")
    if dpo and data.get("format", "auto") not in ("auto", "preference"):
        add("method", f"can't learn from {data['format']}", "data.format: preference")
    default = Training.model_fields["beta"].default  # a recipe that was written out has it
    if not dpo and training.get("beta", default) != default:
        add("beta", "is for method dpo alone", "leave it out")
    figures = [name for name in SELECTABLE[task] if dpo or name != "reward_accuracy"]
    if best_by is not None and best_by not in figures:
        add("best_by", "is not measured here", f"one of {', '.join(figures)}")
    validated = data.get("validation") is not None or bool(data.get("validation_fraction"))
    if best_by is not None and not validated:
        remedy = "give data.validation or data.validation_fraction"
        add("best_by", "needs examples to choose by", remedy)
    if training.get("patience") is not None and best_by is None:
        add("patience", "means nothing without training.best_by", f"one of {', '.join(figures)}")
    return found


def _split_mistakes(data: dict[str, Any]) -> list[Mistake]:
    found = []
    if data.get("split_by", "example") != "example":
        problem = "is for a part of train that is held out"
        if data.get("test") is not None:
            found.append(Mistake("data.split_by", data["split_by"], problem, "leave out data.test"))
        if data.get("holdout_fraction") == 0:
            remedy = "leave it out, or raise data.holdout_fraction"
            found.append(Mistake("data.split_by", data["split_by"], problem, remedy))
    if data.get("validation") is not None and data.get("validation_fraction"):
        remedy = "leave out one of data.validation and data.validation_fraction"
        value = data["validation_fraction"]
        found.append(Mistake("data.validation_fraction", value, "is given twice", remedy))
    return found


def _prompt_mistakes(task: Task, changes: Any) -> list[Mistake]:
    if not isinstance(changes, dict) or not set(changes) <= set(PromptTemplate.model_fields):
        return []  # the field check says so
    try:
        changed_prompt(task, changes)
    except ValidationError as error:
        return [
            Mistake("prompt", None, item["msg"].removeprefix("Value error, "), "")
            for item in error.errors(include_url=False)
        ]
    return []
