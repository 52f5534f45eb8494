"""Requests for the base and for many versions in the same engine steps."""

import concurrent.futures
import random
from typing import Any

import pytest

from bench import truth
from tests.made import Recipe, publish
from tests.serving import Running

LENGTH = 16

Said = dict[tuple[str, str], truth.Alone]
"""Answers by model and prompt."""


def _ask(server: Running, model: str, text: str) -> list[int]:
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": text}], "temperature": 0,
        "max_tokens": LENGTH, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        token_ids: list[int] = answer.json()["choices"][0]["token_ids"]
        return token_ids


def _differs(alone: truth.Alone, answer: list[int]) -> bool:
    """Whether an answer parts from the lone one where no tie excuses it."""
    margin = alone.parts_from(tuple(answer))
    return margin is not None and margin > truth.TIE_NATS


@pytest.fixture(scope="module")
def alone(server: Running) -> Said:
    """What transformers and peft say for the base and 12 versions, one at a time."""
    recipes = [Recipe(f"mixed-{number}", seed=200 + number) for number in range(12)]
    names = {"": server.base.name}
    for recipe in recipes:
        names[truth.key(recipe)] = publish(server.registry, server.base, recipe).reference
    said = truth.answers(server.base, recipes, LENGTH)
    return {
        (names[key], text): one for key, by_text in said.items() for text, one in by_text.items()
    }


def test_nobody_gets_anothers_answer(server: Running, alone: Said) -> None:
    asked = [key for key in alone for _ in range(3)]
    asked += [key for key in alone if key[0] == server.base.name] * 12
    random.Random(1).shuffle(asked)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda key: _ask(server, *key), asked))

    wrong = [
        (key, answer)
        for key, answer in zip(asked, answers, strict=True)
        if _differs(alone[key], answer)
    ]
    equal = sum(alone[k].token_ids == tuple(a) for k, a in zip(asked, answers, strict=True))
    assert wrong == []
    assert equal >= 0.7 * len(asked)  # ties are common in a random model, not the rule


def test_the_base_answers_as_itself_after_every_slot_was_used(server: Running, alone: Said) -> None:
    for name, text in alone:
        if name != server.base.name:
            _ask(server, name, text)

    base = server.base.name
    assert not any(_differs(alone[base, text], _ask(server, base, text)) for text in truth.PROMPTS)
