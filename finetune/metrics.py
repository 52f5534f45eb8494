"""Figures on held-out examples, each with a 95 % bootstrap interval over the examples.

A score is a function from resamples, [S, N] positions of examples, to values, [S]. The
figure itself is the score of every example taken once.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import f1_score

Resamples = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Score = Callable[[Resamples], Values]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def with_interval(score: Score, examples: int, samples: int, seed: int) -> Figure:
    """A score of all examples and the middle 95 % of its bootstrap resamples.

    Equal arguments draw equal resamples, so base and adapter are compared on the same.
    """
    value = score(np.arange(examples)[None, :])[0]
    draws = np.random.default_rng(seed).integers(examples, size=(samples, examples))
    low, high = np.percentile(score(draws), [2.5, 97.5])
    return Figure(float(value), float(low), float(high))


def mean(values: Sequence[float]) -> Score:
    array = np.asarray(values, dtype=np.float64)

    def score(draws: Resamples) -> Values:
        means: Values = array[draws].mean(axis=1)
        return means

    return score


def ratio(
    totals: Sequence[float], counts: Sequence[int], then: Callable[[Values], Values] = np.asarray
) -> Score:
    """Sum of totals over sum of counts, such as the loss of a token; `then` is applied last."""
    upper, lower = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)

    def score(draws: Resamples) -> Values:
        return then(upper[draws].sum(axis=1) / lower[draws].sum(axis=1))

    return score


def macro_f1(expected: Sequence[str], predicted: Sequence[str]) -> Score:
    """scikit-learn's macro F1; a label counts when it is expected or predicted."""
    names = sorted({*expected, *predicted})
    gold = np.asarray([names.index(label) for label in expected])
    said = np.asarray([names.index(label) for label in predicted])

    def score(draws: Resamples) -> Values:
        return np.asarray(
            [f1_score(gold[d], said[d], average="macro", zero_division=0) for d in draws]
        )

    return score


def corpus(metric: BLEU | CHRF, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """A corpus score of sacrebleu, from the statistics that it keeps of each sentence."""
    statistics = np.asarray(
        metric._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=np.float64
    )

    def score(draws: Resamples) -> Values:
        sums = (statistics[draw].sum(axis=0) for draw in draws)
        return np.asarray([metric._compute_score_from_stats(list(row)).score for row in sums])

    return score


def signature(metric: BLEU | CHRF) -> str:
    """What sacrebleu asks to be told beside a score; known after the first score."""
    return str(metric.get_signature())


def normalise_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, without punctuation, articles and extra space."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 when the normalised answer is one of the references, else 0."""
    return float(any(normalise_answer(answer) == normalise_answer(r) for r in references))


def answer_f1(answer: str, references: Sequence[str]) -> float:
    """SQuAD's F1 over words, the best of the references."""
    return max(_word_f1(normalise_answer(answer), normalise_answer(r)) for r in references)


def _word_f1(answer: str, reference: str) -> float:
    said, wanted = answer.split(), reference.split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def metric_entry(adapter: Figure, base: Figure, unit: str, signed: str | None) -> dict[str, Any]:
    """A metric as the manifest has it."""
    return {
        "value": adapter.value, "low": adapter.low, "high": adapter.high,
        "base_value": base.value, "base_low": base.low, "base_high": base.high,
        "unit": unit, "signature": signed,
    }  # fmt: skip
