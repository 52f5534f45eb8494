"""Sentences and parts join to the text again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tasks.sentences import join, pack, split


def texts(sentences: list) -> list[str]:
    return [sentence.text for sentence in sentences]


def test_abbreviations_and_numbers_end_no_sentence() -> None:
    text = "Dr. Smith paid 3.50 at 3 p.m. on Jan. 5th, e.g. for v1.2.3. He left."
    assert texts(split(text, "en")) == [text[:-9], "He left."]


def test_an_initial_stays_with_its_name() -> None:
    assert texts(split("M. Dupont est là. Il part.", "fr")) == ["M. Dupont est là.", "Il part."]


def test_chinese_sentences_end_at_full_width_marks() -> None:
    assert texts(split("你好。这是测试!真的吗?", "zh-Hans")) == ["你好。", "这是测试!", "真的吗?"]


def test_paragraph_breaks_are_gaps() -> None:
    found = split("One.\n\n\tTwo.", "en")
    assert [(item.text, item.gap) for item in found] == [("One.", "\n\n\t"), ("Two.", "")]


def test_a_wrapped_line_is_one_sentence() -> None:
    assert texts(split("This line\ngoes on. Next.", "en")) == ["This line\ngoes on.", "Next."]


pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["Hello. ", "Mr. X ", "\n\n", "  ", "。", "%(n)s", "<b>x</b>", "\r\n", "!? "]),
)
long_texts = st.lists(pieces, max_size=30).map("".join)


@given(long_texts, st.sampled_from(["en", "fr", "zh", "ja", "xx", "pt-BR"]))
def test_splitting_and_joining_is_identity(text: str, language: str) -> None:
    found = split(text, language)
    assert join(found) == text
    assert all(text[item.start : item.end] == item.text for item in found)
    assert all(item.text for item in found[1:])


@given(long_texts, st.integers(1, 40), st.integers(1, 40))
def test_packing_keeps_the_text_and_the_limit(text: str, target: int, limit: int) -> None:
    starts = list(range(len(text)))  # every character a token
    parts = pack(split(text, "en"), starts, target, limit)
    assert join(parts) == text
    assert all(len(part.text) <= limit for part in parts)


def test_a_part_spans_no_paragraph_break() -> None:
    text = "One. Two.\n\nThree.  Four. Five."
    assert texts(pack(split(text, "en"), range(len(text)), 100, 100)) == [
        "One. Two.", "Three.", "Four. Five.",
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [12, 15, 20])
def test_a_cut_falls_between_words_and_not_in_a_placeholder(limit: int) -> None:
    text = "aa bb cc %(name)s dd ee ff gg hh"
    parts = pack(split(text, "en"), range(len(text)), limit, limit)
    assert len(parts) > 1
    assert join(parts) == text
    assert [word for part in texts(parts) for word in part.split()] == text.split()
