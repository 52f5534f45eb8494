"""What a request may use, from its body."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.body import parse_once
from service.limiting.estimate import ROUTES, may_use
from service.plugin import our_routes
from service.scopes import INFER
from service.scopes import ROUTES as SCOPES

LONGEST = 512
CHAT = {"messages": [{"role": "user", "content": "x" * 200}]}


def used(route: str, body: bytes) -> int:
    return may_use(route, parse_once({}, body), len(body), LONGEST)


@pytest.mark.parametrize(
    ("route", "body", "answers"),
    [
        ("/v1/chat/completions", {**CHAT, "max_tokens": 10}, 10),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 20, "max_tokens": 10}, 20),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 10, "n": 3}, 30),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 10**9}, LONGEST),
        ("/v1/completions", {"prompt": "x"}, 16),
        ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": 5, "n": 2}, 20),
        ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 5}, 5),
        ("/v1/completions", {"prompt": [[1], [2]], "max_tokens": 5}, 10),
        ("/v1/responses", {"input": "x", "max_output_tokens": 7}, 7),
        ("/v1/generate", {"prompt": ["x"] * 4}, 4 * 256),
        ("/v1/translate", {"text": ["x"] * 3, "target_lang": "fr", "max_tokens": 9}, 27),
        ("/v1/answer", {"question": "x"}, 128),
        ("/v1/classify", {"text": ["x"] * 5}, 5),
        ("/v1/files", {"prompt": "x"}, None),
    ],
)
def test_answers_are_reckoned_as_the_routes_bound_them(
    route: str, body: dict[str, Any], answers: int | None
) -> None:
    raw = json.dumps(body).encode()
    prompt = -(-len(raw) // 4)
    assert used(route, raw) == (0 if answers is None else prompt + answers)


def test_an_answer_without_a_bound_may_fill_the_context() -> None:
    raw = json.dumps(CHAT).encode()
    assert used("/v1/chat/completions", raw) == LONGEST
    assert used("/v1/responses", json.dumps({"input": "x"}).encode()) == LONGEST


@given(st.sampled_from(sorted(ROUTES)), st.binary(max_size=60))
def test_any_bytes_have_an_estimate(route: str, body: bytes) -> None:
    assert used(route, body) >= 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "prompt", "text", "input")


@given(st.sampled_from(sorted(ROUTES)), st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_fields_of_any_kind_have_one_that_the_database_takes(
    route: str, fields: dict[str, Any]
) -> None:
    assert 0 < used(route, json.dumps(fields).encode()) <= 2**40


def test_every_route_that_asks_the_engine_is_reckoned() -> None:
    asks = {
        path for (method, path), scopes in SCOPES.items() if (method, scopes) == ("POST", INFER)
    }
    others = {path for path in asks if "batches" in path or "feedback" in path}
    assert asks - others == ROUTES
    assert {route.path for route in our_routes()} >= ROUTES
