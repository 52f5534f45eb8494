"""Every bad value is refused with its field's name, before any engine request."""

from typing import Any

import pytest

from tests.service.tasks.fake import FakeEngine, make_app, post, post_raw, results

GENERATE, TRANSLATE = {"prompt": "x"}, {"text": "some words", "target_lang": "fr"}
ANSWER, CLASSIFY = {"question": "x"}, {"text": "x", "labels": ["a", "b"]}

BAD: list[tuple[str, dict[str, Any], str]] = [
    *(
        ("generate", {**GENERATE, name: value}, name)
        for name, value in [
            ("prompt", ""), ("prompt", " \n"), ("prompt", []), ("prompt", ["a", ""]),
            ("prompt", ["x"] * 257), ("prompt", 7), ("prompt", ["a", 7]), ("prompt", None),
            ("prompt", {"text": "x"}),
            ("max_tokens", 0), ("max_tokens", "5"), ("max_tokens", 1.5), ("max_tokens", True),
            ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"),
            ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("min_p", 1.5), ("seed", -1),
            ("seed", 2**63), ("stop", ""), ("stop", ["a"] * 17), ("stop", ["x" * 101]),
            ("stop", 5), ("frequency_penalty", 3), ("presence_penalty", -3),
            ("repetition_penalty", 0), ("json_schema", "object"), ("json_schema", []),
            ("stream", "yes"), ("model", ""), ("model", 5), ("best_of", 2), ("priority", 1),
        ]
    ),
    ("generate", {}, "prompt"),
    ("translate", {"text": "x"}, "target_lang"),
    ("translate", {"target_lang": "fr"}, "text"),
    *(
        ("translate", {**TRANSLATE, name: value}, name)
        for name, value in [
            ("text", ["a", " "]), ("target_lang", "french"), ("target_lang", ""),
            ("source_lang", "xx-"), ("source_lang", 3), ("glossary", ["a"]),
            ("glossary", {"a": ""}), ("glossary", {" ": "b"}), ("glossary", {"a": 1}),
            ("glossary", {f"t{number}": "x" for number in range(257)}),
            ("glossary", {"a": "x" * 257}), ("max_tokens", 0), ("temperature", 0.5),
        ]
    ),
    ("translate", {**TRANSLATE, "source_lang": "fr"}, "target_lang"),
    ("translate", {**TRANSLATE, "text": ["a", "b"], "stream": True}, "stream"),
    ("translate", {**TRANSLATE, "model": "nosuch"}, "model"),
    *(
        ("answer", {**ANSWER, name: value}, name)
        for name, value in [
            ("question", ""), ("question", []), ("context", ""), ("context", []),
            ("context", ["a", ""]), ("context", 5), ("max_tokens", -1), ("contexts", ["a"]),
        ]
    ),
    *(
        ("classify", {**CLASSIFY, name: value}, name)
        for name, value in [
            ("text", ""), ("labels", []), ("labels", ["a"]), ("labels", "a"), ("labels", ["a", ""]),
            ("labels", ["a", "A "]), ("labels", [1, 2]), ("labels", [f"l{n}" for n in range(257)]),
            ("labels", ["a", "x" * 257]), ("stream", True),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("task", "body", "param"), BAD)
def test_a_bad_value_is_named_by_its_field(task: str, body: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    app = make_app(engine)
    response = post(app, f"/v1/{task}", **body)
    assert response.status_code in (400, 404), response.text
    assert response.json()["error"]["param"] == param, response.text
    assert param in response.json()["error"]["message"] or param == "model"
    assert engine.calls == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"prompt": "x", "stop": "\\udfff"}', "stop"),
        (b'{"prompt": "x", "json_schema": {"const": "\\ud800"}}', "json_schema.const"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
    ],
)
def test_what_only_raw_json_can_say_is_refused(body: bytes, param: str) -> None:
    engine = FakeEngine()
    response = post_raw(make_app(engine), "/v1/generate", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert engine.calls == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/generate", {"prompt": ["x" * 600_000] * 2}, "prompt"),
        ("/v1/translate", {"text": "x" * 1_000_001, "target_lang": "fr"}, "text"),
        ("/v1/answer", {"question": "q", "context": ["x" * 500_001] * 2}, "context"),
        ("/v1/classify", {"text": "x" * 1_000_001, "labels": ["a", "b"]}, "text"),
    ],
)
def test_too_much_text_is_413(path: str, body: dict[str, Any], param: str) -> None:
    response = post(make_app(FakeEngine()), path, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (413, param)


def test_a_bad_item_is_named_by_its_place() -> None:
    response = post(make_app(FakeEngine()), "/v1/generate", prompt=["a", "b", " "])
    assert "item 2 must not be blank" in response.json()["error"]["message"]


def test_a_single_text_and_a_list_of_one_answer_alike() -> None:
    app = make_app(FakeEngine())
    assert results(post(app, "/v1/generate", prompt="x")) == results(
        post(app, "/v1/generate", prompt=["x"])
    )


def test_a_zero_is_a_value_and_not_a_default() -> None:
    engine = FakeEngine()
    results(post(make_app(engine), "/v1/generate", prompt="x", temperature=0, seed=0))
    assert (engine.calls[0][1].temperature, engine.calls[0][1].seed) == (0, 0)


def test_the_routes_are_documented_with_both_forms_of_a_text() -> None:
    schema = make_app(FakeEngine()).openapi()
    assert {"/v1/generate", "/v1/translate", "/v1/answer", "/v1/classify"} <= set(schema["paths"])
    prompt = schema["components"]["schemas"]["GenerateRequest"]["properties"]["prompt"]
    assert {kind["type"] for kind in prompt["anyOf"]} == {"string", "array"}
