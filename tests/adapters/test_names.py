"""Names, references and language tags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidInput, InvalidName
from adapters.languages import language_name, parse_tag, same_language
from adapters.names import (
    Reference,
    check_alias,
    check_name,
    fine_tuned_model,
    parse_reference,
)


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


@pytest.mark.parametrize(
    "name", ["..", "a/b", "a\0b", "a" * 65, "a" * 300, "a\n", "", ".a", "A", "a..b", "é"]
)
def test_dangerous_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


def test_every_form_of_a_reference_is_read() -> None:
    digest = "sha256:" + "ab" * 32

    assert parse_reference("x").alias == "production"
    assert parse_reference("x@staging").alias == "staging"
    assert parse_reference("x@7").number == 7
    assert parse_reference(f"x@{digest}").digest == digest


def test_a_fine_tuned_models_name_tells_base_project_name_and_the_digests_beginning() -> None:
    text = fine_tuned_model("base-1", "team", "x", "sha256:" + "ab" * 32)
    assert text == "ft:base-1:team:x:abababab"
    assert parse_reference(text) == Reference(
        "x", digest="sha256:abababab", base="base-1", project="team"
    )


def test_a_checkpoints_name_tells_its_step_as_well() -> None:
    text = fine_tuned_model("base-1", "team", "x", "sha256:" + "ab" * 32, 20)
    assert text == "ft:base-1:team:x:abababab:ckpt-step-20"
    assert parse_reference(text) == Reference(
        "x", digest="sha256:abababab", base="base-1", project="team", checkpoint=20
    )


@pytest.mark.parametrize(
    "text",
    ["ft:", "ft:b:p:x", "ft:b:p:x:abc", "ft:b:p:x:ABABABAB", "ft:b:p:x:abababab:step-1",
     "ft:b:p:x:abababab:ckpt-step-0", "ft:b:p:x:abababab:ckpt-step-", "ft:b:p:x:abababab:",
     "ft:b:p:x:abababab:ckpt-step-1:ckpt-step-1", "ft:b:p:x:ckpt-step-1",
     "ft:b::x:abababab", "ft:b:p:../x:abababab"],
)  # fmt: skip
def test_a_malformed_fine_tuned_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_reference(text)


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)


@given(NAMES, st.integers(0, 10**9 - 1), NAMES.filter(lambda text: not text.isdecimal()))
def test_a_reference_means_what_was_written(name: str, number: int, alias: str) -> None:
    assert parse_reference(f"{name}@{number}") == Reference(name, number=number)
    assert parse_reference(f"{name}@{alias}") == Reference(name, alias=alias)


@given(st.text(max_size=40))
def test_any_text_is_a_reference_to_one_thing_or_refused(text: str) -> None:
    try:
        found = parse_reference(text)
    except InvalidName:
        return
    assert check_name(found.name) == found.name
    assert [found.alias, found.number, found.digest].count(None) == 2


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
