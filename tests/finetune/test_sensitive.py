"""Personal data and secrets: what is found, what only looks like it, and how it is replaced."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.prompt import Renderer
from finetune.config import check_recipe
from finetune.data import prepare
from finetune.mistakes import RecipeError
from finetune.sensitive import find_sensitive, mask, redact

KEY = "AKIA" + "IOSFODNN7EXAMPLE"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("mail Ann.Lee+x@mail.example.org, now", "email", "Ann.Lee+x@mail.example.org"),
        ("(555) 123-4567", "phone", "(555) 123-4567"),
        ("ring 01 23 45 67 89.", "phone", "01 23 45 67 89"),
        ("+49 (0)30 1234567", "phone", "+49 (0)30 1234567"),
        ("IBAN GB82WEST12345698765432 AND MORE", "iban", "GB82WEST12345698765432"),
        ("FR14 2004 1010 0505 0001 3M02 606", "iban", "FR14 2004 1010 0505 0001 3M02 606"),
        ("4111-1111-1111-1111 123", "credit_card", "4111-1111-1111-1111"),
        ("amex 378282246310005", "credit_card", "378282246310005"),
        ("at 2001:db8::8a2e:370:7334 or", "ip_address", "2001:db8::8a2e:370:7334"),
        ("ping 8.8.4.4, please", "ip_address", "8.8.4.4"),
        (f"id={KEY};", "aws_key", KEY),
    ],
)
def test_a_match_is_found_whole(text: str, kind: str, value: str) -> None:
    assert [(m.kind, text[m.start : m.end]) for m in find_sensitive(text)] == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "GB82WEST12345698765433",  # the checksum is wrong
        "4111 1111 1111 1112",
        "1234567812345678",  # no issuer
        "2024-11-25 12:30:45", "25.11.2024", "version 10.2.33.4", "127.0.0.1", "255.255.255.0",
        "std::vector<a::b>", "1 000 000 000", "@decorator", "user@localhost", "a ~ b @ c.d",
        "eyJ is how one begins", "risk-averse-people-and-others-too", "chapter 3.1.4.1.5",
        "AKIAISNOTAKEY", "0.1234567890", "978-3-16-148410-0",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert find_sensitive(text) == []


def test_equal_texts_are_redacted_equally_and_a_mask_does_not_tell_the_value() -> None:
    text = "ann@example.org wrote from 8.8.4.4 to ann@example.org"
    assert redact(text) == "[EMAIL] wrote from [IP_ADDRESS] to [EMAIL]"
    assert redact(redact(text)) == redact(text)
    assert (
        redact(text, ("ip_address",))
        == "ann@example.org wrote from [IP_ADDRESS] to ann@example.org"
    )
    assert mask("ann@example.org") == "an… (15 characters)"


def test_long_texts_without_an_end_take_no_long_time() -> None:
    for text in (
        "a" * 200_000,
        "1 " * 100_000,
        "a." * 100_000 + "@",
        "A1" * 100_000,
        "1:" * 50_000,
    ):
        assert redact(text) == text


def test_a_recipe_may_have_the_data_redacted_on_all_sides(
    write_lines: Callable[..., Path], renderer: Renderer
) -> None:
    lines = [
        {"source": f"ask u{n}@example.org about it", "target": f"voir u{n}@example.org {n}"}
        for n in range(60)
    ]
    raw = {
        "name": "a", "task": "translate",
        "data": {"train": str(write_lines("r.jsonl", lines)), "source_lang": "en",
                 "target_lang": "fr", "redact": True},
    }  # fmt: skip
    prepared = prepare(check_recipe(raw), renderer, 512)
    assert {row.input["text"] for row in prepared.rows} == {"ask [EMAIL] about it"}
    assert {row.split for row in prepared.rows} != {"train", "test"}  # now they are one input
    assert all("@" not in renderer.tokenizer.decode(row.ids) for row in prepared.rows)

    with pytest.raises(RecipeError, match=r"data\.redact"):
        check_recipe({**raw, "data": {**raw["data"], "redact": ["passport"]}})


def test_chats_are_redacted_in_messages_and_in_calls(
    write_lines: Callable[..., Path], renderer: Renderer
) -> None:
    messages = [
        {"role": "user", "content": "I am ann@example.org"},
        {"role": "assistant", "content": "Hello ann@example.org"},
    ]
    data = {
        "train": str(write_lines("c.jsonl", [{"messages": messages}])),
        "redact": ["email"],
        "holdout_fraction": 0,
    }
    recipe = check_recipe({"name": "a", "task": "generate", "data": data})
    row = prepare(recipe, renderer, 512).rows[0]
    assert row.input["messages"][0]["content"] == "I am [EMAIL]"
    assert row.references == ["Hello [EMAIL]"]
