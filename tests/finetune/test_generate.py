"""Greedy generation in batches says what a plain loop says."""

from typing import Any

import pytest
import torch

from adapters.bases import Base
from finetune.base_model import load_model
from finetune.generate import end_tokens, greedy


@pytest.fixture(scope="module")
def model(base: Base) -> Any:
    return load_model(base.path, "float32", "cpu")


def plain(model: Any, prompt: list[int], count: int, ends: frozenset[int]) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def prompts_of(count: int) -> list[list[int]]:
    shared = [4 + (11 * n) % 300 for n in range(30)]
    return [shared + [40 + 3 * n] * (1 + n % 5) for n in range(count)]


def test_batched_answers_equal_those_of_a_plain_loop(model: Any, tokenizer: Any) -> None:
    prompts = prompts_of(9)
    ends = end_tokens(model, tokenizer)
    answers = greedy(model, tokenizer, prompts, 12)
    assert answers == [plain(model, prompt, 12, ends) for prompt in prompts]
    assert any(answers)


def test_sequences_that_end_early_leave_the_others_unchanged(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(9)
    free = [plain(model, prompt, 12, frozenset()) for prompt in prompts]
    # let tokens that some answers contain end them, so that the batch shrinks on its way
    ends = frozenset({free[0][2], free[1][0], free[2][5], free[3][1], free[4][0]})
    monkeypatch.setattr("finetune.generate.end_tokens", lambda *_: ends)

    answers = greedy(model, tokenizer, prompts, 12)

    assert answers == [plain(model, prompt, 12, ends) for prompt in prompts]
    assert {len(answer) for answer in answers} >= {0, 2}


def test_each_prompt_may_have_its_own_limit(model: Any, tokenizer: Any) -> None:
    prompts = prompts_of(4)
    ends = end_tokens(model, tokenizer)
    caps = [3, 0, 7, 1]
    answers = greedy(model, tokenizer, prompts, caps)
    assert answers == [
        plain(model, prompt, cap, ends) for prompt, cap in zip(prompts, caps, strict=True)
    ]


def test_the_end_of_turn_ends_an_answer(model: Any, tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in end_tokens(model, tokenizer)


def test_no_prompts_give_no_answers(model: Any, tokenizer: Any) -> None:
    assert greedy(model, tokenizer, [], 5) == []
