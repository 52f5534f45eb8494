"""The adapter against its base on held-out examples, with the same prompts.

translate  chrF and BLEU of greedy translations
answer     exact match and F1 of greedy answers, as SQuAD defines them
classify   accuracy and macro F1 of the most likely label
generate   perplexity and loss of the held-out answers; of preferences also the share of
           pairs whose preferred answer is the likelier one, token by token
"""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics import BLEU, CHRF

from adapters.bases import Base
from adapters.prompt import Renderer
from finetune import metrics
from finetune.base_model import load_model
from finetune.batching import make_batches
from finetune.config import Recipe
from finetune.data import Prepared, Row
from finetune.forward import supervised_losses
from finetune.generate import greedy
from finetune.labels import label_probabilities
from finetune.metrics import Figure, Score

_SHOWN_GENERATIONS = 20
"""Open-ended answers are generated to be read, not scored: a few are enough."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, with its adapter on or off, and what it is asked."""

    model: Any
    tokenizer: Any
    recipe: Recipe
    rows: list[Row]
    labels: list[str]


@dataclass(slots=True)
class Outcome:
    """What one model, base or adapter, did with the held-out examples."""

    said: list[str]
    """One for each example, or for the first ones only."""
    scores: dict[str, Score]
    units: dict[str, str]
    signatures: dict[str, str] = field(default_factory=dict)
    probabilities: list[dict[str, float]] | None = None


def load_adapter(base: Base, adapter: Path, dtype: str, device: str) -> Any:
    """The base model with a trained adapter, which `disable_adapter` takes off again."""
    model = PeftModel.from_pretrained(load_model(base.path, dtype, device), str(adapter))
    return model.eval()


def evaluate(
    model: Any, tokenizer: Any, recipe: Recipe, prepared: Prepared
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure base and adapter; returns the report and a prediction for each example."""
    started = time.monotonic()
    rows = sorted(prepared.of("test"), key=lambda row: row.key)[: recipe.evaluation.max_examples]
    if recipe.task == "generate":
        rows = [row for row in rows if row.supervised]
    report: dict[str, Any] = {"name": recipe.name, "task": recipe.task, "examples": len(rows)}
    if not rows:
        return report | {"metrics": {}, "seconds": 0.0}, []
    measure = _MEASURES[recipe.task]
    subject = Subject(model, tokenizer, recipe, rows, prepared.labels)
    outcomes: dict[str, Outcome] = {}
    for who in ("base", "adapter"):
        with model.disable_adapter() if who == "base" else nullcontext():
            outcomes[who] = measure(subject)
    report["metrics"] = _figures(outcomes, recipe, len(rows))
    report["seconds"] = round(time.monotonic() - started, 1)
    return report, _predictions(rows, outcomes)


def _figures(outcomes: dict[str, Outcome], recipe: Recipe, examples: int) -> dict[str, Any]:
    base, adapter = outcomes["base"], outcomes["adapter"]

    def figure(score: Score) -> Figure:
        samples, seed = recipe.evaluation.bootstrap_samples, recipe.training.seed
        return metrics.with_interval(score, examples, samples, seed)

    return {
        name: metrics.metric_entry(
            figure(score),
            figure(base.scores[name]),
            adapter.units[name],
            adapter.signatures.get(name),
        )
        for name, score in adapter.scores.items()
    }


def _predictions(rows: list[Row], outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    base, adapter = outcomes["base"], outcomes["adapter"]
    found = []
    for position, row in enumerate(rows[: len(adapter.said)]):
        entry: dict[str, Any] = {
            "input": row.input,
            "reference": row.references[0] if len(row.references) == 1 else row.references,
            "base": base.said[position],
            "adapter": adapter.said[position],
        }
        if adapter.probabilities is not None and base.probabilities is not None:
            entry["base_probabilities"] = base.probabilities[position]
            entry["adapter_probabilities"] = adapter.probabilities[position]
        found.append(entry)
    return found


def _generate_text(subject: Subject, rows: list[Row]) -> list[str]:
    """Greedy answers; each may be twice as long as its reference and a little more."""
    model, tokenizer = subject.model, subject.tokenizer
    renderer = Renderer(tokenizer)
    limit = subject.recipe.evaluation.max_new_tokens
    longest = [max(len(renderer.completion_ids(text)) for text in row.references) for row in rows]
    context = model.config.max_position_embeddings
    caps = [
        max(min(limit, 2 * length + 16, context - len(row.prompt_ids)), 1)
        for row, length in zip(rows, longest, strict=True)
    ]
    answers = greedy(model, tokenizer, [row.prompt_ids for row in rows], caps)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def _translations(subject: Subject) -> Outcome:
    rows = subject.rows
    said = _generate_text(subject, rows)
    references = [row.references[0] for row in rows]
    target = subject.recipe.data.target_lang or ""
    bleu = BLEU(tokenize=_BLEU_TOKENIZERS.get(target.split("-")[0], "13a"))
    kinds: dict[str, BLEU | CHRF] = {"chrf": CHRF(), "bleu": bleu}
    return Outcome(
        said=said,
        scores={name: metrics.corpus(kind, said, references) for name, kind in kinds.items()},
        units={"chrf": "chrF", "bleu": "BLEU"},
        signatures={name: metrics.signature(kind) for name, kind in kinds.items()},
    )


_BLEU_TOKENIZERS = {"zh": "zh", "cmn": "zh", "yue": "zh", "ja": "char", "th": "char", "km": "char"}
"""Languages without spaces; `13a` parts words at spaces."""


def _answers(subject: Subject) -> Outcome:
    said = _generate_text(subject, subject.rows)
    pairs = list(zip(said, [row.references for row in subject.rows], strict=True))
    return Outcome(
        said=said,
        scores={
            "exact_match": metrics.mean([metrics.exact_match(*pair) for pair in pairs]),
            "f1": metrics.mean([metrics.answer_f1(*pair) for pair in pairs]),
        },
        units={"exact_match": "share", "f1": "share"},
    )


def _classes(subject: Subject) -> Outcome:
    labels, prompts = subject.labels, [row.prompt_ids for row in subject.rows]
    renderer = Renderer(subject.tokenizer)
    table = label_probabilities(subject.model, renderer, prompts, labels).tolist()
    said = [labels[max(range(len(labels)), key=chances.__getitem__)] for chances in table]
    expected = [row.references[0] for row in subject.rows]
    return Outcome(
        said=said,
        scores={
            "accuracy": metrics.mean([float(a == b) for a, b in zip(said, expected, strict=True)]),
            "macro_f1": metrics.macro_f1(expected, said),
        },
        units={"accuracy": "share", "macro_f1": "share"},
        probabilities=[dict(zip(labels, chances, strict=True)) for chances in table],
    )


def _continuations(subject: Subject) -> Outcome:
    rows, budget = subject.rows, subject.recipe.training.batch_tokens
    totals, counts = losses_of(subject.model, rows, budget)
    outcome = Outcome(
        said=_generate_text(subject, rows[:_SHOWN_GENERATIONS]),
        scores={
            "perplexity": metrics.ratio(totals, counts, np.exp),
            "loss": metrics.ratio(totals, counts),
        },
        units={"perplexity": "lower is better", "loss": "nats a token, lower is better"},
    )
    if all(row.rejected_supervised for row in rows):
        right = preferred_is_likelier(subject.model, rows, budget)
        outcome.scores["preference_accuracy"] = metrics.mean(right)
        outcome.units["preference_accuracy"] = "share"
    return outcome


_MEASURES: dict[str, Callable[[Subject], Outcome]] = {
    "translate": _translations,
    "answer": _answers,
    "classify": _classes,
    "generate": _continuations,
}


def figures(subject: Subject) -> dict[str, float]:
    """The task's figures of a model as it is, without intervals."""
    scores = _MEASURES[subject.recipe.task](subject).scores
    everyone = np.arange(len(subject.rows))[None, :]
    return {name: float(score(everyone)[0]) for name, score in scores.items()}


def losses_of(model: Any, rows: list[Row], batch_tokens: int) -> tuple[list[float], list[int]]:
    """Summed loss in nats and number of supervised tokens of each row."""
    totals, counts = [0.0] * len(rows), [len(row.supervised) for row in rows]
    with torch.inference_mode():
        for batch in make_batches([len(row.ids) for row in rows], batch_tokens):
            losses, owners = supervised_losses(model, [rows[i] for i in batch])
            for loss, owner in zip(losses.tolist(), owners.tolist(), strict=True):
                totals[batch[owner]] += loss
    return totals, counts


def preferred_is_likelier(model: Any, rows: list[Row], batch_tokens: int) -> list[float]:
    """1 for each pair whose preferred answer has the higher mean log-probability, else 0."""
    others = [replace(r, ids=r.rejected_ids, supervised=r.rejected_supervised) for r in rows]
    means = []
    for side in (rows, others):
        totals, counts = losses_of(model, side, batch_tokens)
        means.append([total / count for total, count in zip(totals, counts, strict=True)])
    return [float(good < bad) for good, bad in zip(*means, strict=True)]


def save_report(report: dict[str, Any], predictions: list[dict[str, Any]], folder: Path) -> None:
    """Write predictions.jsonl, then report.json, which marks the evaluation as whole."""
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for entry in predictions:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    partial = folder / ".report.json.partial"
    partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / "report.json")


def show(report: dict[str, Any], console: Console) -> None:
    """Print base and adapter side by side."""
    if not report["metrics"]:
        console.print("nothing is held out, so nothing was measured")
        return
    table = Table(box=None, title=f"{report['examples']} held-out examples", title_justify="left")
    for name in ("metric", "base", "adapter"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, m in report["metrics"].items():
        table.add_row(
            name,
            f"{m['base_value']:.3g} ({m['base_low']:.3g} to {m['base_high']:.3g})",
            f"{m['value']:.3g} ({m['low']:.3g} to {m['high']:.3g})",
        )
    console.print(table)
