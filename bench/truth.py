"""What each version of a tiny base answers alone, by transformers and peft."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.bases import Base
from adapters.prompt import Renderer
from tests.made import Recipe, random_adapter

PROMPTS = ("save the file", "the folder could not be opened", "please try again", "le fichier")
TOKENS = 16
TIE_NATS = 0.05
"""Below this margin between the two likeliest tokens the order of sums may decide."""


@dataclass(frozen=True)
class Alone:
    """A lone greedy answer, and by how much each of its tokens was the likeliest, in nats."""

    token_ids: tuple[int, ...]
    margins: tuple[float, ...]

    def parts_from(self, other: tuple[int, ...]) -> float | None:
        """The margin where another answer parts from this one; None for an equal answer."""
        pairs = zip(self.token_ids, other, self.margins, strict=True)
        return next((margin for one, two, margin in pairs if one != two), None)


def answers(
    base: Base, recipes: Iterable[Recipe], tokens: int = TOKENS
) -> dict[str, dict[str, Alone]]:
    """Greedy answers in float32: {recipe's name and seed: {prompt: answer}}; "" is the base."""
    renderer = Renderer(AutoTokenizer.from_pretrained(base.path))
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    found = {"": _answers(plain, renderer, tokens)}
    for recipe in recipes:
        found[key(recipe)] = _answers(random_adapter(base, recipe), renderer, tokens)
    return found


def key(recipe: Recipe) -> str:
    return f"{recipe.name}/{recipe.seed}"


def _answers(model: Any, renderer: Renderer, tokens: int) -> dict[str, Alone]:
    said: dict[str, Alone] = {}
    for text in PROMPTS:
        ids = renderer.chat_ids([{"role": "user", "content": text}])
        margins: list[float] = []
        for _ in range(tokens):
            with torch.no_grad():
                best = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            ids = [*ids, int(best.indices[0])]
        said[text] = Alone(tuple(ids[-tokens:]), tuple(margins))
    return said
