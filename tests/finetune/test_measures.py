"""What answers are measured by, on answers known in advance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from finetune.config import Recipe, check_recipe
from finetune.data import Row
from finetune.measures import measure


@dataclass
class Says:
    """A model whose answers are known; like a server, it tells no losses."""

    recipe: Recipe
    rows: list[Row]
    said: list[str]
    labels: list[str]

    def texts(self, rows: list[Row]) -> list[str]:
        return self.said[: len(rows)]

    def label_probabilities(self) -> list[list[float]]:
        raise AssertionError

    def losses(self, rows: list[Row]) -> None:
        """None."""


@pytest.fixture
def says(make_row: Callable[..., Row]) -> Callable[..., Says]:
    def make(said: list[str], rows: list[dict[str, Any]], **evaluation: Any) -> Says:
        recipe = check_recipe(
            {"name": "a", "task": "generate", "data": {"train": "x"}, "evaluation": evaluation}
        )
        made = [make_row([1, 2], [1], **{"input": {"prompt": "p"}, **row}) for row in rows]
        return Says(recipe, made, said, [])

    return make


def test_code_is_measured_on_the_examples_that_have_asserts(says: Callable[..., Says]) -> None:
    asserts = [{"t": '["assert f(2) == 4"]'}, {}, {"t": "null"}, {"t": "assert f(3) == 9"}]
    asked = says(
        ["def f(n): return n + n"] * 4, [{"columns": columns} for columns in asserts], asserts="t"
    )
    found = measure(asked).measured["pass@1"]
    assert found.over.tolist() == [0, 3]
    assert found.score(found.over[None, :])[0] == 0.5


def test_where_losses_are_not_told_answers_alone_are_measured(says: Callable[..., Says]) -> None:
    outcome = measure(says(["a b", "a c"], [{"references": ["a b"]}] * 2, pattern=".*b"))
    assert set(outcome.measured) == {"rouge_l", "pattern"}
    assert (outcome.each, outcome.each_is) == ([1.0, 0.5], "ROUGE-L")
