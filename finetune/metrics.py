"""Figures on held-out examples, each with a 95 % bootstrap interval over the examples.

A score is a function from resamples, [S, N] positions of examples, to values, [S]. The
figure itself is the score of every example taken once.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics import BLEU, CHRF

from adapters.placeholders import compare, find

Resamples = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Score = Callable[[Resamples], Values]

CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A score, and the examples on which it can be computed."""

    score: Score
    over: Positions
    signature: str | None = None
    support: int | None = None
    """Examples that bear on it, where not all of `over` do: those of its label."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A score of some examples, and of bootstrap resamples of them, [S]."""

    value: float
    values: Values

    def figure(self) -> Figure:
        low, high = np.percentile(self.values, [2.5, 97.5])
        return Figure(self.value, float(low), float(high))

    def minus(self, other: "Sampled") -> "Sampled":
        """The difference of two models on the same resamples: a paired bootstrap (Koehn 2004)."""
        return Sampled(self.value - other.value, self.values - other.values)

    def times(self, sign: int) -> "Sampled":
        return Sampled(sign * self.value, sign * self.values)

    def bound(self, confidence: float) -> float:
        """Not less than this, with so much confidence (one side)."""
        return float(np.percentile(self.values, 100 * (1 - confidence)))


def resample(score: Score, over: Positions, samples: int, seed: int) -> Sampled:
    """A score of some examples and of resamples of them.

    Equal arguments draw equal resamples, so models are compared on the same.
    """
    draws = np.random.default_rng(seed).integers(len(over), size=(samples, len(over)))
    return Sampled(float(score(over[None, :])[0]), score(over[draws]))


def with_interval(score: Score, examples: int, samples: int, seed: int) -> Figure:
    """A score of all examples and the middle 95 % of its bootstrap resamples."""
    return resample(score, np.arange(examples), samples, seed).figure()


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


class Decisions:
    """Right and chosen labels of a classifier, and the scores made of their counts."""

    def __init__(self, expected: Sequence[str], predicted: Sequence[str]) -> None:
        self.labels = sorted({*expected, *predicted})
        place = {label: number for number, label in enumerate(self.labels)}
        self._gold = np.asarray([place[label] for label in expected], dtype=np.int64)
        self._said = np.asarray([place[label] for label in predicted], dtype=np.int64)

    def counts(self, draws: Resamples) -> tuple[Values, Values, Values]:
        """How often each label was right, expected, and predicted: [S, L] each."""
        gold, said = self._gold[draws], self._said[draws]
        width, height = len(self.labels), len(draws)
        starts = np.arange(height)[:, None] * width

        def count(labels: Resamples, weights: Values | None = None) -> Values:
            flat = (labels + starts).ravel()
            found = np.bincount(
                flat, None if weights is None else weights.ravel(), minlength=width * height
            )
            return found.reshape(height, width).astype(np.float64)

        return count(gold, (gold == said).astype(np.float64)), count(gold), count(said)

    def by_label(self, draws: Resamples) -> dict[str, Values]:
        """Precision, recall and F1 of each label, [S, L]; 0 where nothing was there to count."""
        return _kinds(*self.counts(draws))

    def macro(self, kind: str) -> Score:
        """The mean over labels; a label counts when it is expected or predicted."""

        def score(draws: Resamples) -> Values:
            hits, expected, predicted = self.counts(draws)
            there = (expected + predicted > 0).sum(axis=1)
            means: Values = _kinds(hits, expected, predicted)[kind].sum(axis=1) / there
            return means

        return score

    def of_label(self, kind: str, label: str) -> Score:
        place = self.labels.index(label)

        def score(draws: Resamples) -> Values:
            values: Values = self.by_label(draws)[kind][:, place]
            return values

        return score

    def support(self, label: str) -> int:
        """How many examples have this label."""
        return int((self._gold == self.labels.index(label)).sum())

    def confusion(self) -> list[list[int]]:
        """[L][L]: expected by row, predicted by column, in the order of `labels`."""
        width = len(self.labels)
        flat = np.bincount(self._gold * width + self._said, minlength=width * width)
        rows: list[list[int]] = flat.reshape(width, width).tolist()
        return rows


def _kinds(hits: Values, expected: Values, predicted: Values) -> dict[str, Values]:
    return {
        "precision": _share(hits, predicted), "recall": _share(hits, expected),
        "f1": _share(2 * hits, expected + predicted),
    }  # fmt: skip


def _share(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> Score:
    """Expected calibration error in ten bins of equal width (Guo et al. 2017)."""
    sure, bins = np.asarray(confidence, dtype=np.float64), _bins(confidence)
    gaps = np.asarray(right, dtype=np.float64) - sure

    def score(draws: Resamples) -> Values:
        starts = np.arange(len(draws))[:, None] * CALIBRATION_BINS
        sums = np.bincount(
            (bins[draws] + starts).ravel(), gaps[draws].ravel(), len(draws) * CALIBRATION_BINS
        ).reshape(len(draws), CALIBRATION_BINS)
        errors: Values = np.abs(sums).sum(axis=1) / draws.shape[1]
        return errors

    return score


def reliability(confidence: Sequence[float], right: Sequence[bool]) -> list[dict[str, float]]:
    """What a reliability diagram shows: bins that hold any example, with their means."""
    bins, sure, hits = _bins(confidence), np.asarray(confidence), np.asarray(right)
    return [
        {
            "examples": int((bins == number).sum()),
            "confidence": float(sure[bins == number].mean()),
            "accuracy": float(hits[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def _bins(confidence: Sequence[float]) -> Positions:
    scaled = np.asarray(confidence, dtype=np.float64) * CALIBRATION_BINS
    return np.minimum(scaled.astype(np.int64), CALIBRATION_BINS - 1)


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


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L's F1 over lower-cased words, the best of the references (Lin 2004)."""
    said = _words(answer)
    return max(_rouge_l(said, _words(reference)) for reference in references)


def _rouge_l(said: list[str], wanted: list[str]) -> float:
    common = longest_common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest sequence of words that both have in this order."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0  # of the row above, one place to the left
        for place, match in enumerate(other, 1):
            above = row[place]
            row[place] = before + 1 if word == match else max(above, row[place - 1])
            before = above
    return row[-1]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def is_json(text: str) -> bool:
    """Whether a text is one JSON value by RFC 8259, which has no NaN."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(name)


def keeps_placeholders(source: str, translation: str) -> bool:
    """Whether a translation has its source's placeholders and tags, and no others."""
    return not compare(source, translation)


def has_placeholders(source: str) -> bool:
    return bool(find(source))


def metric_entry(
    adapter: Figure, base: Figure, live: Figure | None, unit: str, signed: str | None
) -> dict[str, Any]:
    """A metric as the manifest has it."""
    entry = {
        "value": adapter.value, "low": adapter.low, "high": adapter.high,
        "base_value": base.value, "base_low": base.low, "base_high": base.high,
        "unit": unit, "signature": signed,
    }  # fmt: skip
    if live is not None:
        entry |= {"live_value": live.value, "live_low": live.low, "live_high": live.high}
    return entry
