"""Whose each field of vLLM's request types is."""

from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

from service.engine import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from service.errors import BadRequest
from service.fields import CHAT, COMPLETIONS, RESPONSES, Field, Owner, Table, check_fields

ROUTES = [
    (CHAT, ChatCompletionRequest, chat_params.CompletionCreateParamsStreaming),
    (COMPLETIONS, CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
    (RESPONSES, ResponsesRequest, response_create_params.ResponseCreateParamsStreaming),
]
each_route = pytest.mark.parametrize(("table", "kind", "openais"), ROUTES)


def names_of(openais: Any) -> set[str]:
    """What OpenAI's client can send, its inherited parameters too."""
    return set(openais.__annotations__)


@each_route
def test_every_field_of_vllms_type_has_an_owner(
    table: Table, kind: type[BaseModel], openais: Any
) -> None:
    assert set(kind.model_fields) - set(table) == set()
    assert [name for name, field in kind.model_fields.items() if field.alias] == []


@each_route
def test_every_parameter_of_openais_client_is_known(
    table: Table, kind: type[BaseModel], openais: Any
) -> None:
    assert {"model", "stream"} <= names_of(openais)
    assert names_of(openais) - set(table) == set()


@each_route
def test_no_owner_is_named_for_a_field_that_is_gone(
    table: Table, kind: type[BaseModel], openais: Any
) -> None:
    assert set(table) - set(kind.model_fields) - names_of(openais) == set()


@each_route
def test_only_what_vllm_has_is_passed_on(table: Table, kind: type[BaseModel], openais: Any) -> None:
    callers = {name for name, field in table.items() if field.owner is Owner.CALLER}
    assert callers - set(kind.model_fields) == set()


@each_route
def test_a_field_that_a_release_adds_is_refused_until_it_has_an_owner(
    table: Table, kind: type[BaseModel], openais: Any
) -> None:
    for name in ("engine_lever", "guided_regex", "n ", "N", ""):
        with pytest.raises(BadRequest) as caught:
            check_fields({"model": "x", name: None}, table)
        assert (caught.value.code, caught.value.param) == ("unknown_field", name)
    assert "structured_outputs" in hint_of(table, "guided_json")


def hint_of(table: Table, name: str) -> str:
    with pytest.raises(BadRequest) as caught:
        check_fields({name: "x"}, table)
    return caught.value.hint


@each_route
def test_what_is_not_the_callers_is_refused_with_a_remedy(
    table: Table, kind: type[BaseModel], openais: Any
) -> None:
    refused = {name for name, field in table.items() if field.owner not in PASSED}
    assert {"cache_salt", "priority", "kv_transfer_params", "vllm_xargs", "request_id"} <= refused
    for name in refused:
        with pytest.raises(BadRequest) as caught:
            check_fields({name: "something"}, table)
        assert (caught.value.code, caught.value.param) == ("unsupported_field", name)
        assert caught.value.hint


PASSED = (Owner.CALLER, Owner.IGNORED)


@each_route
def test_a_value_that_asks_for_nothing_is_tolerated(
    table: Table, kind: type[BaseModel], openais: Any
) -> None:
    check_fields(dict.fromkeys(table), table)
    check_fields({"priority": 0, "stream": False, "user": "u"}, table)


def test_zero_is_not_taken_for_false() -> None:
    assert Field(Owner.OPERATOR).asks_for_nothing(value=False)
    assert not Field(Owner.OPERATOR).asks_for_nothing(0)
    with pytest.raises(BadRequest):
        check_fields({"truncate_prompt_tokens": 0}, CHAT)
