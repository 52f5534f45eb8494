"""Errors as callers see them, through an app with our handlers."""

import asyncio
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from adapters import errors as adapter_errors
from service import errors


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    max_tokens: int = Field(default=1, ge=1)
    labels: list[str] = []


class EngineBroke(Exception):
    pass


def make_app(raised: Exception | None = None) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/classify")
    async def classify(body: Body, limit: Annotated[int, Query()] = 1) -> dict[str, Any]:
        if raised is not None:
            raise raised
        return body.model_dump()

    translated = {EngineBroke: lambda _: errors.from_service(errors.EngineFailed("the engine"))}
    errors.install(app, translated)
    return app


def post(app: FastAPI, path: str = "/v1/classify", **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(request.pop("method", "POST"), path, **request)

    return asyncio.run(send())


def answer_to(error: Exception) -> tuple[int, dict[str, Any]]:
    response = post(make_app(error), json={"text": "a"})
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code", "hint"}
    return response.status_code, body["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.BadRequest("m"), 400, "invalid_request_error", "invalid_value"),
        (errors.Unauthenticated("m"), 401, "authentication_error", "invalid_api_key"),
        (errors.ModelNotFound("m"), 404, "invalid_request_error", "model_not_found"),
        (errors.TooLarge("m"), 413, "invalid_request_error", "request_too_large"),
        (errors.Overloaded("m"), 429, "rate_limit_error", "overloaded"),
        (errors.EngineFailed("m"), 500, "server_error", "engine_failed"),
        (errors.NotReady("m", code="other"), 503, "server_error", "other"),
        (adapter_errors.InvalidName("m"), 400, "invalid_request_error", "invalid_name"),
        (adapter_errors.VersionNotFound("m"), 404, "invalid_request_error", "model_not_found"),
        (adapter_errors.BaseNotFound("m"), 404, "invalid_request_error", "model_not_found"),
        (adapter_errors.ProofFailed("m"), 400, "invalid_request_error", "proof_failed"),
        (adapter_errors.Quarantined("m"), 400, "invalid_request_error", "quarantined"),
        (adapter_errors.StoreFailed("m"), 503, "server_error", "store_failed"),
        (EngineBroke(), 500, "server_error", "engine_failed"),
    ],
)
def test_each_error_has_its_status_type_and_code(
    error: Exception, status: int, kind: str, code: str
) -> None:
    found, body = answer_to(error)

    assert (found, body["type"], body["code"]) == (status, kind, code)


def test_the_field_and_the_remedy_reach_the_caller() -> None:
    for error in (
        errors.BadRequest("bad", param="model", hint="use another"),
        adapter_errors.IncompatibleAdapter("bad", param="model", hint="use another"),
    ):
        _, body = answer_to(error)
        assert (body["message"], body["param"], body["hint"]) == ("bad", "model", "use another")
    assert answer_to(errors.BadRequest("bad"))[1]["hint"] is None


@pytest.mark.parametrize(
    ("error", "retry"),
    [(errors.Overloaded("m"), "1"), (errors.NotReady("m"), "1"), (errors.BadRequest("m"), None)],
)
def test_only_what_passes_asks_to_be_tried_again(error: Exception, retry: str | None) -> None:
    assert post(make_app(error), json={"text": "a"}).headers.get("retry-after") == retry


def test_an_unexpected_error_tells_nothing_of_its_inside() -> None:
    status, body = answer_to(RuntimeError("/secret/path of another caller"))

    assert (status, body["code"]) == (500, "server_error")
    assert "secret" not in str(body)


@pytest.mark.parametrize(
    ("sent", "code", "param", "words"),
    [
        ({"json": {}}, "missing_field", "text", ["text"]),
        ({"json": {"text": "a", "max_tokens": 0}}, "invalid_value", "max_tokens", ["'0'", "1"]),
        ({"json": {"text": 7}}, "invalid_value", "text", ["string", "'7'"]),
        ({"json": {"text": "a", "labels": ["x", 2]}}, "invalid_value", "labels.1", ["'2'"]),
        ({"json": {"text": "a", "txet": "b"}}, "invalid_value", "txet", ["txet"]),
        ({"json": {"text": 7, "max_tokens": 0}}, "invalid_value", "text", ["and 1 more"]),
        ({"json": {"text": "a"}, "params": {"limit": "x"}}, "invalid_value", "query.limit", ["'x'"]),  # noqa: E501
        ({"content": b"{"}, "invalid_json", None, ["not valid JSON"]),
        ({"json": []}, "invalid_value", None, ["valid"]),
        ({}, "missing_field", None, ["required"]),
    ],
)  # fmt: skip
def test_wrong_input_is_a_400_that_names_its_field_and_value(
    sent: dict[str, Any], code: str, param: str | None, words: list[str]
) -> None:
    headers = {"content-type": "application/json"}
    response = post(make_app(), headers=headers, **sent)

    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert [word for word in words if word not in error["message"]] == []


def test_a_long_wrong_value_is_cut_in_the_message() -> None:
    sent = {"text": "a", "max_tokens": "9x" * 5000}

    assert len(post(make_app(), json=sent).json()["error"]["message"]) < 300


def test_an_unknown_path_and_a_wrong_method_have_our_shape_too() -> None:
    missing, wrong = post(make_app(), "/nowhere"), post(make_app(), method="GET")

    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


def test_every_error_of_the_adapters_has_a_status_below_500_but_a_failed_store() -> None:
    def tree(kind: type) -> list[type]:
        return [cls for sub in kind.__subclasses__() for cls in (sub, *tree(sub))]

    kinds = [k for k in tree(adapter_errors.AdapterError) if k.__module__ == "adapters.errors"]
    statuses = {kind.__name__: errors.from_adapter(kind("m")).status_code for kind in kinds}

    assert len(statuses) >= 13
    assert {name for name, status in statuses.items() if status >= 500} == {"StoreFailed"}
