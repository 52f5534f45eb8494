"""What one model does with the held-out examples, and how good that is, task by task.

translate  chrF, chrF++ and BLEU of greedy translations; whether placeholders are kept
answer     exact match and F1 of greedy answers, as SQuAD defines them
classify   accuracy, macro F1 and calibration of the most likely label; figures of each label
generate   perplexity and loss of the held-out answers; ROUGE-L and checks of greedy ones
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sacrebleu.metrics import BLEU, CHRF

from adapters.prompt import Renderer
from finetune import metrics
from finetune.batching import make_batches
from finetune.config import Recipe
from finetune.data import Row
from finetune.forward import supervised_losses
from finetune.generate import greedy
from finetune.labels import label_probabilities
from finetune.metric_names import OF_A_LABEL
from finetune.metrics import Decisions, Measured, Positions, Score


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, with an adapter on or off, and what it is asked."""

    model: Any
    tokenizer: Any
    recipe: Recipe
    rows: list[Row]
    labels: list[str]


@dataclass(slots=True)
class Outcome:
    """What one model did with the held-out examples."""

    said: list[str]
    """One for each example, or for the first ones only."""
    measured: dict[str, Measured]
    each: list[float]
    """How good each answer is by itself, the more the better; as long as the examples."""
    each_is: str
    """What `each` holds."""
    probabilities: list[dict[str, float]] | None = None
    decisions: Decisions | None = None
    reliability: list[dict[str, float]] = field(default_factory=list)


def measure(subject: Subject) -> Outcome:
    """Ask a model everything that its task is measured by."""
    return _MEASURES[subject.recipe.task](subject)


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
    sources = [str(row.input["text"]) for row in rows]
    references = [row.references[0] for row in rows]
    target = subject.recipe.data.target_lang or ""
    bleu = BLEU(tokenize=_BLEU_TOKENIZERS.get(target.split("-")[0], "13a"))
    kinds: dict[str, BLEU | CHRF] = {"chrf": CHRF(), "chrf++": CHRF(word_order=2), "bleu": bleu}
    measured = {}
    for name, kind in kinds.items():
        score = metrics.corpus(kind, said, references)
        measured[name] = _over_all(score, rows, metrics.signature(kind))
    marked = np.flatnonzero([metrics.has_placeholders(source) for source in sources])
    if len(marked):
        pairs = zip(sources, said, strict=True)
        kept = metrics.mean([float(metrics.keeps_placeholders(*pair)) for pair in pairs])
        measured["placeholders"] = Measured(kept, marked)
    alone = CHRF()
    each = [
        float(alone.sentence_score(text, [reference]).score)
        for text, reference in zip(said, references, strict=True)
    ]
    return Outcome(said, measured, each, "chrF of the sentence")


_BLEU_TOKENIZERS = {"zh": "zh", "cmn": "zh", "yue": "zh", "ja": "char", "th": "char", "km": "char"}
"""Languages without spaces; `13a` parts words at spaces."""


def _answers(subject: Subject) -> Outcome:
    rows = subject.rows
    said = _generate_text(subject, rows)
    pairs = list(zip(said, [row.references for row in rows], strict=True))
    f1 = [metrics.answer_f1(*pair) for pair in pairs]
    exact = metrics.mean([metrics.exact_match(*pair) for pair in pairs])
    measured = {"exact_match": _over_all(exact, rows), "f1": _over_all(metrics.mean(f1), rows)}
    return Outcome(said, measured, f1, "F1")


def _classes(subject: Subject) -> Outcome:
    labels, rows = subject.labels, subject.rows
    prompts = [row.prompt_ids for row in rows]
    renderer = Renderer(subject.tokenizer)
    table = label_probabilities(subject.model, renderer, prompts, labels).tolist()
    said = [labels[max(range(len(labels)), key=chances.__getitem__)] for chances in table]
    expected = [row.references[0] for row in rows]
    right = [a == b for a, b in zip(said, expected, strict=True)]
    sure = [max(chances) for chances in table]
    probabilities = [dict(zip(labels, chances, strict=True)) for chances in table]
    measured = {
        "accuracy": _over_all(metrics.mean([float(hit) for hit in right]), rows),
        "macro_f1": _over_all(metrics.macro_f1(expected, said), rows),
        "ece": _over_all(metrics.calibration_error(sure, right), rows),
    }
    return Outcome(
        said, measured, [p.get(e, 0.0) for p, e in zip(probabilities, expected, strict=True)],
        "probability of the right label", probabilities=probabilities,
        decisions=Decisions(expected, said), reliability=metrics.reliability(sure, right),
    )  # fmt: skip


def _continuations(subject: Subject) -> Outcome:
    rows, evaluation = subject.rows, subject.recipe.evaluation
    totals, counts = losses_of(subject.model, rows, subject.recipe.training.batch_tokens)
    measured = {
        "perplexity": _over_all(metrics.ratio(totals, counts, np.exp), rows),
        "loss": _over_all(metrics.ratio(totals, counts), rows),
    }
    first = rows[: evaluation.max_generated]
    said = _generate_text(subject, first)
    checks: dict[str, list[float]] = {
        "rouge_l": [metrics.rouge_l(t, r.references) for t, r in zip(said, first, strict=True)]
    }
    if evaluation.valid_json:
        checks["json_valid"] = [float(metrics.is_json(text)) for text in said]
    if evaluation.pattern is not None:
        wanted = re.compile(evaluation.pattern)
        checks["pattern"] = [float(wanted.fullmatch(text) is not None) for text in said]
    for name, values in checks.items():
        measured[name] = _over_all(metrics.mean(values), first)
    each = [-total / count for total, count in zip(totals, counts, strict=True)]
    return Outcome(said, measured, each, "log-probability of a token of the reference, nats")


_MEASURES: dict[str, Callable[[Subject], Outcome]] = {
    "translate": _translations,
    "answer": _answers,
    "classify": _classes,
    "generate": _continuations,
}


def _over_all(score: Score, rows: list[Row], signature: str | None = None) -> Measured:
    return Measured(score, _positions(rows), signature)


def _positions(rows: list[Row]) -> Positions:
    return np.arange(len(rows))


def of_label(outcome: Outcome, metric: str, label: str) -> Measured | None:
    """Precision, recall or F1 of one label; None where it was neither expected nor chosen."""
    decisions = outcome.decisions
    if decisions is None or metric not in OF_A_LABEL or label not in decisions.labels:
        return None
    over = np.arange(len(outcome.said))
    return Measured(decisions.of_label(metric, label), over, support=decisions.support(label))


def losses_of(model: Any, rows: list[Row], batch_tokens: int) -> tuple[list[float], list[int]]:
    """Summed loss in nats and number of supervised tokens of each row."""
    totals, counts = [0.0] * len(rows), [len(row.supervised) for row in rows]
    with torch.inference_mode():
        for batch in make_batches([len(row.ids) for row in rows], batch_tokens):
            losses, owners = supervised_losses(model, [rows[i] for i in batch])
            for loss, owner in zip(losses.tolist(), owners.tolist(), strict=True):
                totals[batch[owner]] += loss
    return totals, counts
