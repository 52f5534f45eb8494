"""Names, references and language tags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidInput, InvalidName
from adapters.languages import language_name, parse_tag, same_language
from adapters.names import check_alias, check_name, parse_reference


@given(st.text(max_size=80))
def test_a_name_that_passes_is_one_harmless_path_component(text: str) -> None:
    try:
        check_name(text)
    except InvalidName:
        return
    assert 1 <= len(text) <= 64
    assert text.isascii()
    assert not set(text) & set("/\\\0@:% ")
    assert ".." not in text
    assert text == text.lower()


@pytest.mark.parametrize("name", ["..", "a/b", "a\0b", "a" * 300, "", ".a", "A", "a..b", "é"])
def test_dangerous_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


def test_every_form_of_a_reference_is_read() -> None:
    digest = "sha256:" + "ab" * 32

    assert parse_reference("x").alias == "production"
    assert parse_reference("x@staging").alias == "staging"
    assert parse_reference("x@7").number == 7
    assert parse_reference(f"x@{digest}").digest == digest


@pytest.mark.parametrize(
    "text", ["@1", "x@", "x@sha256:zz", "x@sha256:abc", "x@../y", "x@1@2", "x@" + "9" * 30]
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_reference(text)


def test_an_alias_is_no_number() -> None:
    with pytest.raises(InvalidName):
        check_alias("12")


def test_tags_are_normalised_and_named() -> None:
    assert parse_tag("EN_us") == "en-US"
    assert language_name("fr") == "French"
    assert same_language("fr-CA", "fr")
    assert not same_language("fr", "en")


@pytest.mark.parametrize("tag", ["", "xx", "english", "e n", "und", "f" * 100, "zz-nonsense-tag"])
def test_wrong_tags_are_refused_by_name(tag: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_tag(tag, "target_lang")
    assert caught.value.param == "target_lang"
