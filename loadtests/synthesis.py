"""Texts for a trace's lengths: equal hashes become equal prefixes.

How many tokens a word of this server's model has is measured, so that prompts come out as long as
the trace says, whatever the tokenizer.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from loadtests.traces import Recorded

FEW_WORDS, MANY_WORDS, SAMPLES = 5, 85, 4
"""Short, so that the smallest model's context has room; several, since words differ."""


@dataclass(frozen=True)
class WordLength:
    """A prompt of n words has about `fixed_tokens + n * tokens_per_word` tokens."""

    tokens_per_word: float
    fixed_tokens: float
    """What the chat template adds."""


def measure_words(words: Sequence[str], count: Callable[[str], int]) -> WordLength:
    """How long words are in tokens; `count` asks the server. Raises ValueError."""
    generator = random.Random(0)  # noqa: S311  # a sample
    few = many = 0
    for _ in range(SAMPLES):
        sample = generator.choices(words, k=MANY_WORDS)
        few += count(" ".join(sample[:FEW_WORDS]))
        many += count(" ".join(sample))
    tokens_per_word = (many - few) / SAMPLES / (MANY_WORDS - FEW_WORDS)
    if tokens_per_word <= 0:
        raise ValueError(f"the server counts {few} tokens for few words and {many} for many")
    return WordLength(tokens_per_word, max(0.0, few / SAMPLES - FEW_WORDS * tokens_per_word))


class Synthesis:
    """Makes the prompts of a trace from a list of words."""

    def __init__(self, words: Sequence[str], length: WordLength, block_tokens: float) -> None:
        """block_tokens: of one hash, scaled as the lengths are."""
        self._length = length
        self._words_per_block = max(1.0, block_tokens / length.tokens_per_word)

        @lru_cache(maxsize=8192)
        def block(name: str) -> list[str]:
            # seeded by text: equal in every process, unlike hash()
            return random.Random(name).choices(words, k=int(self._words_per_block) + 1)  # noqa: S311

        self._block = block
        self._words = words

    def prompt(self, request: Recorded, number: int) -> str:
        """The text of a request; `number` tells those without hashes apart."""
        free = request.input_tokens - self._length.fixed_tokens
        words = max(1, round(free / self._length.tokens_per_word))
        if not request.hashes:
            return " ".join(random.Random(f"request {number}").choices(self._words, k=words))  # noqa: S311
        text: list[str] = []
        for place, name in enumerate(request.hashes):
            # by places, so that rounding does not add up
            end = round((place + 1) * self._words_per_block)
            text += self._block(f"block {name}")[: end - len(text)]
        missing = words - len(text)
        if missing > 0:  # a last block that is longer than the others
            text += random.Random(f"rest {request.hashes[-1]}").choices(self._words, k=missing)  # noqa: S311
        return " ".join(text[:words])
