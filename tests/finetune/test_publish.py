"""Which tokens a probe has."""

from finetune.publish import PROBE_TOKENS, ends_of


def test_a_probe_has_the_first_token_of_a_prompt_and_its_last_ones() -> None:
    prompt = list(range(100))
    ends = ends_of(prompt)
    assert len(ends) == PROBE_TOKENS
    assert ends == [0, *range(101 - PROBE_TOKENS, 100)]


def test_a_short_prompt_is_probed_whole() -> None:
    for length in (1, PROBE_TOKENS - 1, PROBE_TOKENS):
        assert ends_of(list(range(length))) == list(range(length))
