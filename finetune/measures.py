"""What one model does with the held-out examples, and how good that is, task by task.

translate  chrF, chrF++ and BLEU of greedy translations; whether placeholders are kept
answer     exact match and F1 of greedy answers, as SQuAD defines them
classify   accuracy, macro F1 and calibration of the most likely label; figures of each label
generate   perplexity and loss of the held-out answers; ROUGE-L and checks of greedy ones, such
           as code that must pass asserts; of preferences also the share of pairs whose preferred
           answer is the likelier one, token by token
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from finetune import metrics
from finetune.config import Evaluation
from finetune.data import Row
from finetune.metric_names import OF_A_LABEL
from finetune.metrics import Decisions, Measured, Positions, Score
from finetune.sandbox import passes, statements
from finetune.subjects import Asked


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


def measure(asked: Asked) -> Outcome:
    """Ask a model everything that its task is measured by."""
    return _MEASURES[asked.recipe.task](asked)


def figures(asked: Asked) -> dict[str, float]:
    """The task's figures of a model as it is, without intervals."""
    measured = measure(asked).measured
    return {name: float(found.score(found.over[None, :])[0]) for name, found in measured.items()}


def _translations(asked: Asked) -> Outcome:
    rows = asked.rows
    said = asked.texts(rows)
    sources = [str(row.input["text"]) for row in rows]
    references = [row.references[0] for row in rows]
    target = asked.recipe.data.target_lang or ""
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


def _answers(asked: Asked) -> Outcome:
    rows = asked.rows
    said = asked.texts(rows)
    pairs = list(zip(said, [row.references for row in rows], strict=True))
    f1 = [metrics.answer_f1(*pair) for pair in pairs]
    exact = metrics.mean([metrics.exact_match(*pair) for pair in pairs])
    measured = {"exact_match": _over_all(exact, rows), "f1": _over_all(metrics.mean(f1), rows)}
    return Outcome(said, measured, f1, "F1")


def _classes(asked: Asked) -> Outcome:
    labels, rows = asked.labels, asked.rows
    table = asked.label_probabilities()
    said = [labels[max(range(len(labels)), key=chances.__getitem__)] for chances in table]
    expected = [row.references[0] for row in rows]
    right = [a == b for a, b in zip(said, expected, strict=True)]
    sure = [max(chances) for chances in table]
    probabilities = [dict(zip(labels, chances, strict=True)) for chances in table]
    decisions = Decisions(expected, said)
    scores = {"accuracy": metrics.mean([float(hit) for hit in right])}
    scores |= {f"macro_{kind}": decisions.macro(kind) for kind in OF_A_LABEL}
    scores["ece"] = metrics.calibration_error(sure, right)
    return Outcome(
        said, {name: _over_all(score, rows) for name, score in scores.items()},
        [p.get(e, 0.0) for p, e in zip(probabilities, expected, strict=True)],
        "probability of the right label", probabilities=probabilities, decisions=decisions,
        reliability=metrics.reliability(sure, right),
    )  # fmt: skip


def _continuations(asked: Asked) -> Outcome:
    rows = asked.rows
    first = rows[: asked.recipe.evaluation.max_generated]
    said = asked.texts(first)
    measured = _checked(asked.recipe.evaluation, first, said)
    losses = asked.losses(rows)
    if losses is None:
        each = [metrics.rouge_l(text, row.references) for text, row in zip(said, rows, strict=True)]
        return Outcome(said, measured, each, "ROUGE-L")
    totals, counts = losses
    likely = {
        "perplexity": _over_all(metrics.ratio(totals, counts, np.exp), rows),
        "loss": _over_all(metrics.ratio(totals, counts), rows),
    }
    each = [-total / count for total, count in zip(totals, counts, strict=True)]
    if (right := _preferred_are_likelier(asked, each)) is not None:
        likely["preference_accuracy"] = _over_all(metrics.mean(right), rows)
    what = "log-probability of a token of the reference, nats"
    return Outcome(said, likely | measured, each, what)


def _preferred_are_likelier(asked: Asked, preferred: list[float]) -> list[float] | None:
    """1 for each pair whose preferred answer has the higher mean log-probability, else 0.

    None: the rows are no preferences.
    """
    if not all(row.rejected_supervised for row in asked.rows):
        return None
    losses = asked.losses([row.with_rejected() for row in asked.rows])
    if losses is None:
        return None
    pairs = zip(preferred, *losses, strict=True)
    return [float(mean > -total / count) for mean, total, count in pairs]


def _checked(evaluation: Evaluation, rows: list[Row], said: list[str]) -> dict[str, Measured]:
    """What generated answers are measured by: ROUGE-L, and the checks that the recipe names."""
    scores = [metrics.rouge_l(text, row.references) for text, row in zip(said, rows, strict=True)]
    found = {"rouge_l": _over_all(metrics.mean(scores), rows)}
    if evaluation.valid_json:
        valid = [float(metrics.is_json(text)) for text in said]
        found["json_valid"] = _over_all(metrics.mean(valid), rows)
    if evaluation.pattern is not None:
        wanted = re.compile(evaluation.pattern)
        matches = [float(wanted.fullmatch(text) is not None) for text in said]
        found["pattern"] = _over_all(metrics.mean(matches), rows)
    if evaluation.asserts is not None:
        asserts = [statements(row.columns.get(evaluation.asserts, "")) for row in rows]
        over = np.flatnonzero([bool(text.strip()) for text in asserts])
        if len(over):
            passed = passes([(said[i], asserts[i]) for i in over])
            every = np.zeros(len(rows))
            every[over] = passed
            found["pass@1"] = Measured(metrics.mean(every.tolist()), over)
    return found


_MEASURES: dict[str, Callable[[Asked], Outcome]] = {
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
