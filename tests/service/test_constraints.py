"""What answers shall fit, found in a body."""

import json
from typing import Any

import pytest

from service.constraints import Constraint, constraints
from service.errors import BadRequest

SCHEMA = {"type": "object"}
TEXT = json.dumps(SCHEMA)


def found(body: dict[str, Any], most: int = 1000) -> dict[str, tuple[str, str]]:
    return {one.param: (one.kind, one.text) for one in constraints(body, most)}


def test_a_response_format_and_a_text_format() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    assert found({"response_format": form}) == {
        "response_format.json_schema.schema": ("json", TEXT)
    }
    form = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
    assert found({"text": form}) == {"text.format.schema": ("json", TEXT)}
    tag = {"type": "structural_tag", "format": {"type": "any_text"}}
    assert found({"response_format": tag}) == {
        "response_format": ("structural_tag", json.dumps(tag))
    }


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"json": SCHEMA}, "json", TEXT), ({"json": TEXT}, "json", TEXT),
        ({"regex": "a+"}, "regex", "a+"), ({"grammar": "root ::= x"}, "grammar", "root ::= x"),
        ({"choice": ["a", "b"]}, "choice", '["a", "b"]'),
        ({"structural_tag": "{}"}, "structural_tag", "{}"),
    ],
)  # fmt: skip
def test_structured_outputs_of_vllm(given: dict[str, Any], kind: str, text: str) -> None:
    assert found({"structured_outputs": given}) == {
        f"structured_outputs.{next(iter(given))}": (kind, text)
    }


def test_parameters_of_tools_are_found_in_each_form() -> None:
    inner = {"type": "function", "name": "c", "parameters": SCHEMA}
    tools = [
        {"type": "function", "function": {"name": "a", "parameters": SCHEMA}},
        {"type": "function", "name": "b", "parameters": SCHEMA},
        {"type": "namespace", "name": "n", "tools": [inner]},
        {"type": "custom", "name": "d"},
    ]
    assert list(found({"tools": tools})) == [
        "tools.0.function.parameters", "tools.1.parameters", "tools.2.tools.0.parameters"
    ]  # fmt: skip
    assert found({"tools": tools, "tool_choice": "none"}) == {}


@pytest.mark.parametrize(
    "body",
    [
        {}, {"response_format": {"type": "text"}}, {"response_format": {"type": "json_object"}},
        {"response_format": "x", "text": [], "structured_outputs": 1, "tools": {"a": 1}},
        {"tools": ["x", None, {"function": 3, "tools": "y"}]}, {"structured_outputs": {"regex": 1}},
        {"response_format": {"type": "json_schema"}}, {"text": {"format": None}},
    ],
)  # fmt: skip
def test_where_there_is_none_none_is_found(body: dict[str, Any]) -> None:
    assert found(body) == {}


def test_size_is_bounded_in_bytes_and_choices_in_number() -> None:
    regex = {"structured_outputs": {"regex": "é" * 50}}
    assert constraints(regex, 100) == [Constraint("regex", "é" * 50, "structured_outputs.regex")]
    for body, most in ((regex, 99), ({"structured_outputs": {"choice": ["a"] * 1025}}, 10**6)):
        with pytest.raises(BadRequest) as caught:
            constraints(body, most)
        assert str(caught.value.param).startswith("structured_outputs.")
