"""The OpenAPI document: what routes take and answer, by OpenAI's own types where it has them."""

from typing import Any, Generic, Literal, TypeVar

from fastapi import FastAPI
from openai import types
from openai.types import fine_tuning
from pydantic import BaseModel

from service.scopes import ROUTES, Scope, in_order

T = TypeVar("T")
Responses = dict[int | str, dict[str, Any]]


class ErrorDetail(BaseModel):
    """OpenAI's, and a hint."""

    message: str
    type: str
    param: str | None
    code: str
    hint: str | None


class ErrorBody(BaseModel):
    """What every refusal answers."""

    error: ErrorDetail


class Listing(BaseModel, Generic[T]):
    """OpenAI's `list` object."""

    object: Literal["list"]
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ModelList(BaseModel):
    """OpenAI's, which has no pages."""

    object: Literal["list"]
    data: list[types.Model]


class FileObject(types.FileObject):
    """With a purpose that OpenAI's type leaves out."""

    purpose: str  # type: ignore[assignment]


class Upload(types.Upload):
    """With such a file."""

    file: FileObject | None = None


class FineTuningJob(fine_tuning.FineTuningJob):
    """With a state that OpenAI's type leaves out, and methods with keys of ours."""

    status: str  # type: ignore[assignment]


_KEY = "api_key"
ERRORS: Responses = {"default": {"model": ErrorBody, "description": "A refusal, with its remedy."}}


def answers(model: Any, *, streams: bool = False) -> Responses:
    """The answer of a route, as JSON and where asked for as events."""
    content: dict[str, Any] = {"text/event-stream": {}} if streams else {}
    return {200: {"model": model, "content": content}}


def form(file: str, **fields: Any) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a form with a file; a route reads such forms itself."""
    properties = {file: {"type": "string", "format": "binary"}, **fields}
    wanted = [name for name, field in properties.items() if not field.get("x-optional")]
    schema = {"type": "object", "properties": properties, "required": wanted}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document; made at the first call."""
    if app.openapi_schema is None:
        app.title, app.description = "Modiste", "Customised models, trained and served."
        _tell_scopes(app.openapi())
    return app.openapi()


def _tell_scopes(whole: dict[str, Any]) -> None:
    """Any one of a route's scopes opens it, and a key without any is refused."""
    schemes = whole.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes[_KEY] = {
        "type": "http", "scheme": "bearer", "description": f"A key with scopes: {', '.join(Scope)}."
    }  # fmt: skip
    rows = {
        (method.lower(), path.replace(":path", "")): in_order(scopes)
        for (method, path), scopes in ROUTES.items()
    }
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            if scopes := rows.get((method, path)):
                operation["security"] = [{_KEY: [scope]} for scope in scopes]
                operation["responses"]["403"] = {
                    **operation["responses"]["default"],
                    "description": f"The key has not the scope {' or '.join(scopes)}.",
                }
