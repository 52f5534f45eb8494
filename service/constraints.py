"""What a request wants its answers to fit: schemas, patterns and grammars, found where they stand.

Looked for in the body as the caller wrote it: vLLM compiles some of them while it reads a request,
in the event loop of all requests.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.errors import BadRequest

Kind = Literal["json", "regex", "choice", "grammar", "structural_tag"]

MAX_CHOICES = 1024


@dataclass(frozen=True, slots=True)
class Constraint:
    """One, as text that a compiler reads; `param` is where it stands."""

    kind: Kind
    text: str
    param: str


def constraints(body: Mapping[str, Any], most: int) -> list[Constraint]:
    """All that a body of OpenAI's routes has.

    Args:
        most: bytes that each may have.

    Raises:
        BadRequest: one is too large.
    """
    found: list[Constraint] = []
    for constraint in _found(body):
        size = len(constraint.text.encode(errors="replace"))
        if size > most:
            raise BadRequest(
                f"{constraint.param} has {size} bytes", param=constraint.param,
                hint=f"at most {most}, or raise max_schema_bytes",
            )  # fmt: skip
        found.append(constraint)
    return found


def of_schema(schema: Mapping[str, Any]) -> Constraint:
    """That of the generate route."""
    return Constraint("json", json.dumps(schema), "json_schema")


def _found(body: Mapping[str, Any]) -> Iterator[Constraint]:
    form = _object(body.get("response_format"))
    if form.get("type") == "json_schema":
        schema = _object(form.get("json_schema")).get("schema")
        yield from _schema(schema, "response_format.json_schema.schema")
    elif form.get("type") == "structural_tag":
        yield Constraint("structural_tag", json.dumps(form), "response_format")
    told = _object(_object(body.get("text")).get("format"))
    yield from _schema(told.get("schema"), "text.format.schema")
    yield from _structured(_object(body.get("structured_outputs")))
    yield from _tools(body)


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _schema(schema: object, param: str) -> Iterator[Constraint]:
    if isinstance(schema, str):
        yield Constraint("json", schema, param)
    elif isinstance(schema, dict):
        yield Constraint("json", json.dumps(schema), param)


def _structured(given: Mapping[str, Any]) -> Iterator[Constraint]:
    where = "structured_outputs"
    yield from _schema(given.get("json"), f"{where}.json")
    kinds: tuple[Kind, ...] = ("regex", "grammar", "structural_tag")
    for kind in kinds:
        if isinstance(text := given.get(kind), str):
            yield Constraint(kind, text, f"{where}.{kind}")
    choice = given.get("choice")
    if isinstance(choice, list):
        if len(choice) > MAX_CHOICES:
            raise BadRequest(
                f"{where}.choice has {len(choice)} items", param=f"{where}.choice",
                hint=f"at most {MAX_CHOICES}",
            )  # fmt: skip
        yield Constraint("choice", json.dumps(choice), f"{where}.choice")


def _tools(body: Mapping[str, Any]) -> Iterator[Constraint]:
    """Parameters of the functions that the model may call.

    Of all of them: whether one that is not strict is enforced is up to the operator's flags.
    """
    if body.get("tool_choice") == "none":
        return
    tools = body.get("tools")
    for index, given in enumerate(tools if isinstance(tools, list) else []):
        where, tool = f"tools.{index}", _object(given)
        yield from _schema(tool.get("parameters"), f"{where}.parameters")
        function = _object(tool.get("function"))
        yield from _schema(function.get("parameters"), f"{where}.function.parameters")
        inner = tool.get("tools")  # of a namespace
        for place, one in enumerate(inner if isinstance(inner, list) else []):
            param = f"{where}.tools.{place}.parameters"
            yield from _schema(_object(one).get("parameters"), param)
