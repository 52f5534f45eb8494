"""Bodies whose values have types that the request's own validators don't expect.

vLLM's look at the body before its types do, and some take for granted what they find: a number
where a list belongs ends them with a TypeError. That is the caller's mistake, and is told as one.
"""

from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

MISTAKEN = (ArithmeticError, AttributeError, LookupError, TypeError)


def well_typed(kind: type[BaseModel]) -> WrapValidator:
    """For an annotation of that type: what its validators stumble over is named."""

    def read(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except MISTAKEN as error:
            raise _told(kind, value) from error

    return WrapValidator(read)


def _told(kind: type[BaseModel], body: Any) -> Exception:
    """The first field whose value its own type refuses; that of all, where each takes its own."""
    fields = _fields(kind)
    for name, value in body.items() if isinstance(body, dict) else ():
        if name not in fields:
            continue
        try:
            fields[name].validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            what = PydanticCustomError("wrong_type", "{what}", {"what": first["msg"]})
            details = InitErrorDetails(type=what, loc=(name, *first["loc"]), input=first["input"])
            return ValidationError.from_exception_data(kind.__name__, [details])
        except MISTAKEN:
            break
    return PydanticCustomError("wrong_type", "a field has a value of a type that it can't have")


@cache
def _fields(kind: type[BaseModel]) -> dict[str, TypeAdapter[Any]]:
    return {
        field.alias or name: TypeAdapter(field.annotation)
        for name, field in kind.model_fields.items()
        if field.annotation is not None
    }
