"""Placeholders are found, kept and compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.placeholders import blank, compare, find

EXAMPLES = [
    "%(name)s", "%s", "%d", "%1$s", "%5.2f", "%-10s", "%ld", "{0}", "{name}", "{}", "{{x}}",
    "{{ user.name }}", "${x}", "{% if a %}", "<b>", "</a>", "<br/>", '<a href="u">', "&amp;",
    "&#39;", "&#x27;", "\\n", "\\t", "\\u00e9", "https://example.com/a?b=c", "me@example.com", "%%",
]  # fmt: skip


@pytest.mark.parametrize("placeholder", EXAMPLES)
def test_each_kind_is_found_whole(placeholder: str) -> None:
    found = find(f"Say {placeholder} now")
    assert [item.text for item in found] == [placeholder]


@pytest.mark.parametrize(
    "text",
    ["50 % de rabais", "100%free", "a < b", "AT&T", "if {a, b} then", "5 > 3", "it costs $5"],
)
def test_ordinary_text_has_none(text: str) -> None:
    assert find(text) == []


def test_an_address_ends_before_punctuation() -> None:
    assert [item.text for item in find("See https://example.com/a. Or (http://b.org).")] == [
        "https://example.com/a",
        "http://b.org",
    ]


words = st.text(alphabet="abcéß中 .,", min_size=1, max_size=8).map(lambda text: f" {text} ")


@given(st.lists(st.tuples(words, st.sampled_from(EXAMPLES)), max_size=6))
def test_placeholders_come_round_whatever_stands_between(pairs: list[tuple[str, str]]) -> None:
    text = "".join(word + placeholder for word, placeholder in pairs)
    assert [item.text for item in find(text)] == [placeholder for _, placeholder in pairs]
    assert not compare(text, text)


@given(st.text())
def test_blanking_keeps_offsets(text: str) -> None:
    blanked = blank(text)
    assert len(blanked) == len(text)
    inside = {place for item in find(text) for place in range(item.start, item.end)}
    assert all(blanked[i] == (" " if i in inside else text[i]) for i in range(len(text)))


def test_lost_and_invented_ones_are_named() -> None:
    difference = compare("%s of {n} <b>x</b>", "%s {m} <b>x</b>")
    assert (difference.missing, difference.added) == (("{n}",), ("{m}",))


def test_a_placeholder_twice_is_not_once() -> None:
    assert compare("%s %s", "%s").missing == ("%s",)


def test_unnumbered_arguments_keep_their_order_and_named_ones_may_move() -> None:
    assert compare("%s has %d", "%d pour %s").reordered == ("%s", "%d")
    assert not compare("%(a)s has {b}", "{b} pour %(a)s")
    assert not compare("%1$s has %2$d", "%2$d pour %1$s")
