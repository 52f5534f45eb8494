"""Label probabilities from a trie."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.tasks.labels import branches, check_labels, probabilities

END = 0
label_sets = st.sets(
    st.lists(st.integers(1, 3), min_size=1, max_size=4).map(lambda ids: (*ids, END)),
    min_size=2,
    max_size=12,
).map(sorted)


def score(path: tuple[int, ...], token: int) -> float:
    return math.sin(hash((path, token)) % 1000) * 4


@given(label_sets)
def test_probabilities_sum_to_one_and_equal_those_of_a_masked_model(sequences: list) -> None:
    scores = {
        path: {token: score(path, token) for token in tokens}
        for path, tokens in branches(sequences).items()
    }
    found = probabilities(sequences, scores)

    def masked(sequence: tuple[int, ...]) -> float:
        """A model that at each step may only go on towards some label."""
        whole = 1.0
        for length, token in enumerate(sequence):
            path = sequence[:length]
            allowed = {other[length] for other in sequences if other[:length] == path}
            weights = {other: math.exp(score(path, other)) for other in allowed}
            whole *= weights[token] / sum(weights.values())
        return whole

    assert math.isclose(sum(found), 1.0, abs_tol=1e-9)
    assert found == pytest.approx([masked(sequence) for sequence in sequences], abs=1e-9)


def test_distinct_first_tokens_part_once() -> None:
    assert branches([(1, 5, END), (2, 6, END), (3, END)]) == {(): (1, 2, 3)}


def test_a_label_that_begins_another_ends_with_the_turn() -> None:
    assert branches([(1, END), (1, 2, END)]) == {(1,): (END, 2)}


def test_impossible_tokens_share_equally() -> None:
    scores = {(): {1: -math.inf, 2: -math.inf}}
    assert probabilities([(1, END), (2, END)], scores) == [0.5, 0.5]


def test_very_unlikely_labels_are_still_weighed() -> None:
    found = probabilities([(1, END), (2, END)], {(): {1: -2000.0, 2: -2001.0}})
    assert found == pytest.approx([0.7311, 0.2689], abs=1e-4)


def test_labels_that_read_the_same_are_refused() -> None:
    for sequences in ([(1, END), (1, END)], [(1, END), (1, END, 2)]):
        with pytest.raises(BadRequest, match="reads the same"):
            branches(sequences)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["one"], "1 labels"),
        ([], "0 labels"),
        (["a", " "], r"labels\[1\] is blank"),
        (["Good", "bad", " good "], r"labels\[2\] 'good' is the same label as labels\[0\] 'Good'"),
        (["x" + str(i) for i in range(257)], "257 labels"),
    ],
)
def test_bad_labels_are_named(labels: list[str], message: str) -> None:
    with pytest.raises(BadRequest, match=message) as raised:
        check_labels(labels)
    assert raised.value.param == "labels"


def test_labels_lose_their_outer_white_space() -> None:
    assert check_labels([" a", "b "]) == ("a", "b")


def test_order_of_labels_decides_nothing() -> None:
    sequences = [(1, 2, END), (1, 3, END), (2, END)]
    scores = {(): {1: -1.0, 2: -2.0}, (1,): {2: -0.5, 3: -1.5}}
    for order in itertools.permutations(sequences):
        found = dict(zip(order, probabilities(order, scores), strict=True))
        assert found == dict(zip(sequences, probabilities(sequences, scores), strict=True))
