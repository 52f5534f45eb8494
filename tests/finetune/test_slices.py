"""Slices: which held-out examples belong to a label, a language, a column's value."""

from collections.abc import Callable

import pytest

from adapters.gate import Slice
from finetune.data import Row
from finetune.slices import input_text, positions_of

FRENCH = "Le serveur n'a pas pu démarrer, car le port est déjà utilisé."
ENGLISH = "The server could not be started because the port is already in use."


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    return [
        make_row([1], [0], input={"text": FRENCH}, references=["bad"], columns={"from": "a"}),
        make_row([2], [0], input={"text": ENGLISH}, references=["good"], columns={"from": "7"}),
        make_row([3], [0], input={"text": ENGLISH}, references=["bad"]),
        make_row([4], [0], input={"text": "%d {n}"}, references=["good"], columns={"from": "a"}),
    ]


@pytest.mark.parametrize(
    ("part", "positions"),
    [
        ({}, [0, 1, 2, 3]), ({"label": "bad"}, [0, 2]), ({"label": "none"}, []),
        ({"language": "fr-CA"}, [0]), ({"language": "en"}, [1, 2]),
        ({"column": "from", "value": "a"}, [0, 3]), ({"column": "from", "value": 7}, [1]),
        ({"column": "other", "value": "a"}, []),
    ],
)  # fmt: skip
def test_a_slice_holds_the_examples_that_it_names(
    rows: list[Row], part: dict[str, str], positions: list[int]
) -> None:
    assert positions_of(Slice.model_validate(part), rows).tolist() == positions


def test_the_language_is_that_of_what_a_person_wrote(make_row: Callable[..., Row]) -> None:
    chat = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "first"},
        {"role": "assistant", "content": "a"}, {"role": "user", "content": "last"},
    ]  # fmt: skip
    inputs = [
        {"messages": chat}, {"question": "q", "context": "c"}, {"prompt": "p"},
        {"text": "t", "source_lang": "en", "target_lang": "fr"}, {"messages": chat[:1]},
    ]  # fmt: skip
    assert [input_text(make_row([1], [0], input=given)) for given in inputs] == [
        "last", "q", "p", "t", "",
    ]  # fmt: skip
