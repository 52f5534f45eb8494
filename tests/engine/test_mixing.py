"""Requests for the base and for many versions in the same engine steps."""

import concurrent.futures
import random
from dataclasses import dataclass
from typing import Any

import pytest

from tests.made import Recipe, publish
from tests.serving import Running

PROMPTS = ["save the file", "the folder could not be opened", "please try again", "le fichier"]
LENGTH = 24


TIE_NATS = 0.05
"""Below this margin between the two likeliest tokens the order of sums may decide."""


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


@dataclass(frozen=True)
class Alone:
    """A lone greedy answer, and by how much each of its tokens was the likeliest, in nats."""

    token_ids: list[int]
    margins: list[float]

    def differs(self, other: list[int]) -> bool:
        """Whether an answer parts from this one where no tie excuses it."""
        pairs = zip(self.token_ids, other, self.margins, strict=True)
        return next((m > TIE_NATS for one, two, m in pairs if one != two), False)


@pytest.fixture(scope="module")
def alone(server: Running) -> dict[tuple[str, str], Alone]:
    """What transformers and peft say for the base and 16 versions, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from adapters.prompt import Renderer
    from tests.made import random_adapter

    renderer = Renderer(AutoTokenizer.from_pretrained(server.base.path))
    base = AutoModelForCausalLM.from_pretrained(server.base.path, dtype=torch.float32)
    models: dict[str, Any] = {server.base.name: base.eval()}
    for number in range(16):
        recipe = Recipe(f"mixed-{number}", seed=200 + number)
        reference = publish(server.registry, server.base, recipe).reference
        models[reference] = random_adapter(server.base, recipe)
    said = {}
    for name, model in models.items():
        for text in PROMPTS:
            ids, margins = renderer.chat_ids([{"role": "user", "content": text}]), []
            with torch.no_grad():
                for _ in range(LENGTH):
                    best = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(2)
                    margins.append(float(best.values[0] - best.values[1]))
                    ids = [*ids, int(best.indices[0])]
            said[name, text] = Alone(ids[-LENGTH:], margins)
    return said


def test_nobody_gets_anothers_answer(server: Running, alone: dict[tuple[str, str], Alone]) -> None:
    asked = [key for key in alone for _ in range(3)]
    asked += [key for key in alone if key[0] == server.base.name] * 12
    random.Random(1).shuffle(asked)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda key: _ask(server, *key), asked))

    wrong = [
        (key, answer)
        for key, answer in zip(asked, answers, strict=True)
        if alone[key].differs(answer)
    ]
    equal = sum(alone[k].token_ids == a for k, a in zip(asked, answers, strict=True))
    assert wrong == []
    assert equal >= 0.7 * len(asked)  # ties are common in a random model, not the rule


def test_the_base_answers_as_itself_after_every_slot_was_used(
    server: Running, alone: dict[tuple[str, str], Alone]
) -> None:
    for name, text in alone:
        if name != server.base.name:
            _ask(server, name, text)

    base = server.base.name
    assert not any(alone[base, text].differs(_ask(server, base, text)) for text in PROMPTS)
