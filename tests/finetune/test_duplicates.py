"""Near duplicates are found by their sketches, and different texts are not taken for them."""

import random

import numpy as np
import pytest

from finetune.duplicates import NearIndex, folded, sketch

WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi", "su") for b in "nrst" for c in ("a", "el")]


def text(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def jaccard(one: str, other: str) -> float:
    a, b = ({t[i : i + 5] for i in range(len(t) - 4)} for t in (folded(one), folded(other)))
    return len(a & b) / len(a | b)


def estimate(one: str, other: str, scope: str = "") -> float:
    return float(np.mean(sketch(one) == sketch(other, scope)))


@pytest.mark.parametrize("changed", [0, 1, 2, 5, 10, 20])
def test_the_estimate_is_near_the_jaccard_similarity(changed: int) -> None:
    words = text(1).split()
    other = " ".join(["zzz"] * changed + words[changed:])
    assert estimate(text(1), other) == pytest.approx(jaccard(text(1), other), abs=0.13)


def test_a_text_with_one_other_word_is_near_and_others_are_not() -> None:
    index = NearIndex()
    texts = [text(seed) for seed in range(300)]
    for number, one in enumerate(texts):
        of = sketch(one)
        assert of is not None
        assert not list(index.near(of))
        index.add(number, of)
    for number in range(0, 300, 7):
        words = texts[number].split()
        of = sketch(" ".join([*words[:-1], "Zürich!"]))
        assert of is not None
        assert list(index.near(of)) == [number]


def test_case_accents_punctuation_and_space_make_no_difference() -> None:
    assert folded("  Où est-ce ?\n") == folded("ou EST ce")
    assert estimate("Où est la plus grande église ?", "ou est la plus  grande eglise") == 1.0


def test_short_texts_and_other_scopes_are_never_near() -> None:
    assert sketch("save the file") is None
    assert estimate(text(3), text(3), scope="another context") < 0.1
