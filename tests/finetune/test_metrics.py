"""Metrics on values known in advance, and intervals that behave like intervals."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

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


@pytest.mark.parametrize("kind", ["precision", "recall", "f1"])
def test_macro_figures_are_scikit_learns(kind: str) -> None:
    gold, said = ["a", "a", "b", "c"], ["a", "b", "b", "a"]
    (value,) = metrics.Decisions(gold, said).macro(kind)(ALL)
    whole = precision_recall_fscore_support(gold, said, average="macro", zero_division=0)
    assert value == pytest.approx(
        dict(zip(("precision", "recall", "f1"), whole, strict=False))[kind]
    )


GOLD = ["a", "a", "b", "c", "b", "a", "c", "c"]
SAID = ["a", "b", "b", "a", "b", "a", "d", "c"]
DRAWS = np.random.default_rng(0).integers(8, size=(20, 8))


def test_figures_of_labels_and_their_confusion_are_scikit_learns() -> None:
    decisions = metrics.Decisions(GOLD, SAID)
    whole = precision_recall_fscore_support(GOLD, SAID, labels=decisions.labels, zero_division=0)
    found = decisions.by_label(np.arange(8)[None, :])
    for kind, wanted in zip(("precision", "recall", "f1"), whole, strict=False):
        assert found[kind][0] == pytest.approx(wanted)
    assert [decisions.support(label) for label in "abcd"] == whole[3].tolist() == [3, 2, 3, 0]
    assert decisions.confusion() == confusion_matrix(GOLD, SAID).tolist()


def test_resampled_figures_are_those_of_the_resampled_examples() -> None:
    recall = metrics.Decisions(GOLD, SAID)
    macro = recall.macro("f1")
    of_a = recall.of_label("recall", "a")(DRAWS)
    for draw, mean_f1, one in zip(DRAWS, macro(DRAWS), of_a, strict=True):
        gold, said = [GOLD[i] for i in draw], [SAID[i] for i in draw]
        assert mean_f1 == pytest.approx(f1_score(gold, said, average="macro", zero_division=0))
        hits = sum(a == b == "a" for a, b in zip(gold, said, strict=True))
        assert one == pytest.approx(hits / max(gold.count("a"), 1))


def test_calibration_error_is_the_weighted_gap_between_sureness_and_success() -> None:
    sure, right = [0.95, 0.91, 0.55, 0.52, 1.0], [True, False, True, False, True]
    # bins: 0.9 to 1 holds three with mean 0.9533, two right; 0.5 to 0.6 two with mean 0.535
    gap = abs(2 / 3 - (0.95 + 0.91 + 1.0) / 3) * 3 / 5 + abs(1 / 2 - 0.535) * 2 / 5
    score = metrics.calibration_error(sure, right)
    assert score(np.arange(5)[None, :])[0] == pytest.approx(gap)
    assert score(np.array([[4, 4, 4, 4, 4], [1, 1, 1, 1, 1]])) == pytest.approx([0.0, 0.91])
    bins = metrics.reliability(sure, right)
    assert [(b["examples"], round(b["accuracy"], 3)) for b in bins] == [(2, 0.5), (3, 0.667)]


@pytest.mark.parametrize(
    ("answer", "f1"),
    [  # the examples of Lin (2004), section 3.2
        ("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4),
        ("Police killed the gunman!", 1.0), ("", 0.0), ("nothing alike", 0.0),
        ("police killed", 2 / 3),
    ],
)  # fmt: skip
def test_rouge_l_counts_words_in_order(answer: str, f1: float) -> None:
    assert metrics.rouge_l(answer, ["something", "police killed the gunman"]) == pytest.approx(f1)


def test_the_longest_common_subsequence_is_that_of_all_subsequences() -> None:
    from itertools import combinations

    rng = np.random.default_rng(1)
    for _ in range(30):
        one, other = (list(rng.choice(list("abc"), size=6)) for _ in range(2))
        both = [
            n for n in range(7)
            if {*combinations(one, n)} & {*combinations(other, n)}
        ]  # fmt: skip
        assert metrics.longest_common_subsequence(one, other) == max(both)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, null]}', True), (" 3 ", True), ("{'a': 1}", False), ("NaN", False), ("", False),
        ("```json\n{}\n```", False), ("[" * 100_000, False), ('{"a": 1} and more', False),
    ],
)  # fmt: skip
def test_json_is_one_whole_value(text: str, valid: bool) -> None:
    assert metrics.is_json(text) is valid


@pytest.mark.parametrize("mark", ["{name}", "%s", "%(x)d", "<b>", "${x}"])
def test_a_translation_without_its_sources_placeholder_loses_it(mark: str) -> None:
    assert metrics.has_placeholders(f"Save {mark} now")
    assert metrics.keeps_placeholders(f"Save {mark} now", f"Enregistrer {mark}")
    assert not metrics.keeps_placeholders(f"Save {mark} now", "Enregistrer")
    assert not metrics.keeps_placeholders("Save now", f"Enregistrer {mark}")


def test_a_paired_gain_is_far_surer_than_the_difference_of_two_intervals() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, 200)  # how hard an example is weighs on both models alike
    ours, other = (metrics.mean(list(hard + shift)) for shift in (rng.normal(1, 1, 200), 0.0))
    mine, theirs = (metrics.resample(s, np.arange(200), 1000, 0) for s in (ours, other))

    gain = mine.minus(theirs)

    assert gain.bound(0.95) > 0.5
    assert mine.figure().low < theirs.figure().high
    assert gain.times(-1).value == -gain.value
    # about 1.645 standard errors below
    assert gain.bound(0.95) == pytest.approx(gain.value - 1.645 / np.sqrt(200), abs=0.03)


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
