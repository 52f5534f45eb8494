"""Label probabilities sum to one and equal a walk label by label."""

from typing import Any

import pytest
import torch

from adapters.bases import Base
from adapters.prompt import Renderer
from finetune.base_model import load_model
from finetune.labels import Tree, branchings, label_probabilities

APART = ["positive", "neutral", "very bad"]
TANGLED = ["card", "card lost", "card lost abroad", "cash", "a", "ab", "top-up by card"]


@pytest.fixture(scope="module")
def model(base: Base) -> Any:
    return load_model(base.path, "float32", "cpu")


def brute_force(model: Any, prompt: list[int], completions: list[list[int]]) -> list[float]:
    """For each label, token by token: the share among all labels that go on alike."""
    found = []
    for ids in completions:
        chance = 1.0
        for depth, token in enumerate(ids):
            rivals = sorted({c[depth] for c in completions if c[:depth] == ids[:depth]})
            logits = model(input_ids=torch.tensor([prompt + ids[:depth]])).logits[0, -1]
            shares = torch.softmax(logits[rivals].double(), -1)
            chance *= float(shares[rivals.index(token)])
        found.append(chance)
    return found


@pytest.mark.parametrize("labels", [APART, TANGLED], ids=["apart", "tangled"])
def test_probabilities_sum_to_one_and_equal_brute_force(
    model: Any, renderer: Renderer, labels: list[str]
) -> None:
    prompts = [
        renderer.chat_ids([{"role": "user", "content": text}])
        for text in ("the file is good", "lost", "print the table and the chart again")
    ]
    completions = [renderer.completion_ids(label) for label in labels]

    table = label_probabilities(model, renderer, prompts, labels)

    assert table.shape == (3, len(labels))
    torch.testing.assert_close(table.sum(-1), torch.ones(3, dtype=torch.float64))
    for row, prompt in zip(table.tolist(), prompts, strict=True):
        assert row == pytest.approx(brute_force(model, prompt, completions), rel=1e-3, abs=1e-6)


def test_a_model_that_sees_more_than_its_mask_says_is_asked_label_by_label(
    base: Base, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(base.path, "float32", "cpu")
    inner = model.get_decoder()
    plain = inner.forward

    def blind(*args: Any, attention_mask: Any = None, **named: Any) -> Any:
        del attention_mask
        return plain(*args, **named)

    monkeypatch.setattr(inner, "forward", blind)
    prompts = [renderer.chat_ids([{"role": "user", "content": text}]) for text in ("a", "lost")]
    completions = [renderer.completion_ids(label) for label in TANGLED]
    table = label_probabilities(model, renderer, prompts, TANGLED)
    for row, prompt in zip(table.tolist(), prompts, strict=True):
        assert row == pytest.approx(brute_force(model, prompt, completions), rel=1e-3, abs=1e-6)


def test_no_prompts_have_no_probabilities(model: Any, renderer: Renderer) -> None:
    assert label_probabilities(model, renderer, [], TANGLED).shape == (0, len(TANGLED))


def test_the_tree_has_each_beginning_once_and_sees_its_own_path() -> None:
    tree = Tree.of(branchings([[1, 2, 9], [1, 2, 3], [1, 4, 9], [5, 9], [1, 4, 7]]))
    assert tree.tokens == [1, 2, 4]
    assert tree.depths == [1, 2, 2]
    assert tree.sees.tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert tree.places == [-1, 0, 1, 2]


def test_labels_with_different_first_tokens_part_once(renderer: Renderer) -> None:
    assert len(branchings([renderer.completion_ids(label) for label in APART])) == 1
    assert len(branchings([renderer.completion_ids(label) for label in TANGLED])) > 3


def test_the_end_of_turn_parts_a_label_from_one_that_goes_on() -> None:
    (root, inner) = branchings([[1, 9], [1, 2, 9], [3, 9]])
    assert (root.prefix, root.children) == ((), (1, 3))
    assert (inner.prefix, inner.children) == ((1,), (2, 9))


def test_a_shared_beginning_of_all_labels_costs_no_choice(model: Any, renderer: Renderer) -> None:
    labels = ["card lost", "card found"]
    prompts = [renderer.chat_ids([{"role": "user", "content": "x"}])]
    completions = [renderer.completion_ids(label) for label in labels]
    assert completions[0][0] == completions[1][0]
    (row,) = label_probabilities(model, renderer, prompts, labels).tolist()
    assert row == pytest.approx(brute_force(model, prompts[0], completions), rel=1e-3)
