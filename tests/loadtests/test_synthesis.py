"""Prompts for a trace's lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.synthesis import Synthesis, WordLength, measure_words
from loadtests.traces import Recorded

WORDS = [f"w{number}" for number in range(500)]
LENGTH = WordLength(tokens_per_word=1.6, fixed_tokens=9)


def request(tokens: int, *hashes: int) -> Recorded:
    return Recorded(0.0, tokens, 1, hashes)


def test_the_length_of_words_is_what_the_server_counts() -> None:
    length = measure_words(WORDS, lambda text: 30 + 2 * len(text.split()))

    assert (length.tokens_per_word, length.fixed_tokens) == (2, 30)


def test_a_server_that_counts_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="28 tokens for few words and 28 for many"):
        measure_words(WORDS, lambda text: 7)


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True),
    st.integers(0, 11),
    st.floats(2, 600),
)
def test_equal_hashes_give_equal_prefixes_and_others_do_not(
    hashes: list[int], shared: int, block_tokens: float
) -> None:
    synthesis = Synthesis(WORDS, LENGTH, block_tokens)
    shared = min(shared, len(hashes) - 1)
    others = [*hashes[:shared], *(-1 - name for name in hashes[shared:])]
    whole = int(block_tokens * len(hashes)) + 9

    one = synthesis.prompt(request(whole, *hashes), 0).split()
    other = synthesis.prompt(request(whole, *others), 1).split()

    prefix = round(shared * max(1.0, block_tokens / 1.6))
    assert one[:prefix] == other[:prefix]
    if len(one) - prefix > 8:  # by chance a few words may be alike
        assert one[prefix:] != other[prefix:]


@given(st.integers(1, 5000), st.booleans())
def test_prompts_are_as_long_as_the_trace_says(tokens: int, hashed: bool) -> None:
    synthesis = Synthesis(WORDS, LENGTH, 512)
    hashes = range(-(-tokens // 512)) if hashed else ()

    words = len(synthesis.prompt(request(tokens, *hashes), 0).split())

    assert words == max(1, round((tokens - 9) / 1.6))


def test_without_hashes_no_two_prompts_are_alike() -> None:
    synthesis = Synthesis(WORDS, LENGTH, 512)

    assert synthesis.prompt(request(100), 0) != synthesis.prompt(request(100), 1)
    assert synthesis.prompt(request(100), 1) == Synthesis(WORDS, LENGTH, 512).prompt(
        request(100), 1
    )
