"""Metrics on values known in advance, and intervals that behave like intervals."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import f1_score

from finetune import metrics

HYPOTHESES = ["the cat sat on the mat", "a dog ran in the park", "nothing alike", "the end of it"]
REFERENCES = ["the cat sat on a mat", "a dog ran in the park", "wholly different", "the end of all"]
ALL = np.arange(4)[None, :]


@pytest.mark.parametrize("kind", [BLEU, CHRF])
def test_corpus_scores_and_signatures_are_sacrebleus_own(kind: type) -> None:
    metric = kind()
    (value,) = metrics.corpus(metric, HYPOTHESES, REFERENCES)(ALL)
    signed = metrics.signature(metric)
    whole = kind()
    assert value == pytest.approx(whole.corpus_score(HYPOTHESES, [REFERENCES]).score)
    assert signed == str(whole.get_signature())
    assert signed.startswith("nrefs:1|")


def test_a_resampled_corpus_score_is_that_of_the_resampled_sentences() -> None:
    draws = np.array([[0, 0, 1, 3], [3, 3, 2, 0]])
    values = metrics.corpus(CHRF(), HYPOTHESES, REFERENCES)(draws)
    for value, draw in zip(values, draws, strict=True):
        said, wanted = [HYPOTHESES[i] for i in draw], [REFERENCES[i] for i in draw]
        assert value == pytest.approx(CHRF().corpus_score(said, [wanted]).score)


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("in Paris", ["Paris", "London"], 0.0, 2 / 3),
        ("Berlin", ["Paris"], 0.0, 0.0),
        ("", ["Paris"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("July and July", ["July"], 0.0, 0.5),
    ],
)
def test_answers_are_scored_as_squad_does(
    answer: str, references: list[str], exact: float, f1: float
) -> None:
    assert metrics.exact_match(answer, references) == exact
    assert metrics.answer_f1(answer, references) == pytest.approx(f1)


def test_macro_f1_is_scikit_learns() -> None:
    gold, said = ["a", "a", "b", "c"], ["a", "b", "b", "a"]
    (value,) = metrics.macro_f1(gold, said)(ALL)
    assert value == pytest.approx(f1_score(gold, said, average="macro", zero_division=0))
    assert value == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


def test_perplexity_weighs_tokens_not_examples() -> None:
    score = metrics.ratio([2.0, 6.0], [1, 3], np.exp)
    assert score(np.array([[0, 1]]))[0] == pytest.approx(np.exp(2.0))


def test_an_interval_holds_its_value_is_seeded_and_shrinks_with_examples() -> None:
    def interval(count: int, seed: int) -> metrics.Figure:
        values = [float(n % 2) for n in range(count)]
        return metrics.with_interval(metrics.mean(values), count, 500, seed)

    few, many = interval(20, 1), interval(2000, 1)
    assert few.value == many.value == 0.5
    assert few.low < 0.5 < few.high
    assert few == interval(20, 1)
    assert few != interval(20, 2)
    assert many.high - many.low < 0.25 * (few.high - few.low)
    # about 1.96 standard errors to each side
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(2000), rel=0.15)
