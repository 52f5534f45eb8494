"""What a type's own validators stumble over is the caller's mistake, and is named."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError, model_validator

from service.well_typed import well_typed


class Ask(BaseModel):
    """With a validator as vLLM has them."""

    messages: list[dict[str, str]]
    options: dict[str, Any] | None = None
    n: int = 1

    @model_validator(mode="before")
    @classmethod
    def _look(cls, data: Any) -> Any:
        if data.get("options") is not None:
            data["options"].get("a")
        for message in data["messages"]:
            message["role"]
        return data


ADAPTER = TypeAdapter(Annotated[Ask, well_typed(Ask)])
GOOD = {"messages": [{"role": "user"}]}


def test_what_is_well_typed_is_read_as_ever() -> None:
    assert ADAPTER.validate_python(GOOD | {"n": 2}) == Ask(messages=[{"role": "user"}], n=2)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (GOOD | {"options": []}, ("options",)),
        (GOOD | {"options": "x"}, ("options",)),
        ({"messages": 5}, ("messages",)),
        ({"messages": [3]}, ("messages", 0)),
        (
            {"messages": [{"role": "a"}, {"role": {}, "x": 1}], "options": 1},
            ("messages", 1, "role"),
        ),
    ],
)
def test_a_value_of_another_type_is_named(body: dict[str, Any], place: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(body)
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert error["type"] == "wrong_type"
    assert error["msg"].startswith("Input should be")


@pytest.mark.parametrize("body", [{}, {"messages": [{"x": "y"}]}, 5, []])
def test_what_no_field_explains_is_refused_all_the_same(body: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(body)
    assert caught.value.errors()[0]["type"] == "wrong_type"


def test_what_validators_say_themselves_stays() -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(GOOD | {"n": "many"})
    assert caught.value.errors()[0]["type"] == "int_parsing"
