"""What each key may do: by route, and by purpose of a file."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from service.errors import PermissionDenied
from service.files import UPLOADED, WRITTEN
from service.keys import Keys
from service.plugin import our_routes
from service.scopes import (
    ADMIN,
    ALL,
    INFER,
    PUBLIC,
    PURPOSES,
    ROUTES,
    TRAIN,
    Scope,
    check_route,
    check_routes,
)
from tests.service.desk import Desk

LINE = b'{"prompt": "a", "completion": "b"}\n'


def served_routes() -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in our_routes()
        for method in route.methods
        if route.path not in PUBLIC
    }


def test_every_route_has_its_scopes_and_no_row_is_without_a_route() -> None:
    assert served_routes() == ROUTES.keys()
    check_routes(served_routes())
    assert all(scopes and scopes <= ALL for scopes in ROUTES.values())


def test_a_server_with_a_route_that_has_no_scope_does_not_start() -> None:
    with pytest.raises(RuntimeError, match="POST /v1/new"):
        check_routes([*served_routes(), ("POST", "/v1/new")])
    with pytest.raises(RuntimeError, match="PUT /v1/files"):
        check_routes([("PUT", "/v1/files")])
    check_routes([("GET", path) for path in PUBLIC])


@pytest.mark.parametrize(
    ("scope", "closed"),
    [
        (INFER, ("promote", "import", "gc", "unload", "fine_tuning", "merge", "export")),
        (TRAIN, ("promote", "import", "gc", "unload", "chat", "generate", "batches")),
        (ADMIN, ("chat", "generate", "batches", "fine_tuning", "files")),
    ],
)
def test_one_scope_does_not_open_what_the_others_are_for(
    scope: frozenset[Scope], closed: tuple[str, ...]
) -> None:
    opened = [path for (_, path), scopes in ROUTES.items() if scopes & scope]

    assert opened
    assert [path for path in opened if any(word in path for word in closed)] == []


def test_every_purpose_of_a_file_has_its_scopes() -> None:
    assert set(PURPOSES) == {*UPLOADED, *WRITTEN}


@pytest.fixture
def client_of(served: Desk) -> Callable[..., openai.OpenAI]:
    """A client whose new key of the project `ours` has these scopes, in effect."""

    def client(scopes: frozenset[Scope]) -> openai.OpenAI:
        _, secret = Keys(served.registry.database).create("ours", scopes=scopes)
        served.authenticator.refresh()
        return openai.OpenAI(base_url=f"{served.url}/v1", api_key=secret, max_retries=0)

    return client


def refused(ask: Callable[..., Any], *arguments: Any, **fields: Any) -> dict[str, Any]:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask(*arguments, **fields)
    body: dict[str, Any] = caught.value.response.json()["error"]
    assert body["type"] == "permission_error"
    assert body["code"] == caught.value.code == "insufficient_permissions"
    return body


def test_a_key_for_inference_trains_nothing_and_is_told_what_it_lacks(
    client_of: Callable[..., openai.OpenAI],
) -> None:
    client = client_of(INFER)
    error = refused(client.fine_tuning.jobs.create, model="tiny", training_file="file-none")

    assert error["message"].startswith("POST /v1/fine_tuning/jobs needs the scope train")
    assert "modiste keys create` and `--scope train" in error["hint"]
    assert client.batches.list().data == []


@pytest.mark.parametrize(
    ("route", "needed"),
    [
        (("POST", "/v1/adapters/{name}/promote"), "admin"),
        (("DELETE", "/v1/models/{model:path}"), "train or admin"),
    ],
)
def test_a_refusal_names_route_and_scopes(route: tuple[str, str], needed: str) -> None:
    with pytest.raises(PermissionDenied, match="needs the scope") as caught:
        check_route(INFER, *route)
    said = " ".join(route).replace(":path", "")
    assert caught.value.message == f"{said} needs the scope {needed}, which this API key has not"
    check_route(ADMIN, *route)


def test_files_are_for_keys_of_their_purposes(client_of: Callable[..., openai.OpenAI]) -> None:
    both, infer, train = client_of(INFER | TRAIN), client_of(INFER), client_of(TRAIN)
    training = both.files.create(file=("a.jsonl", LINE), purpose="fine-tune").id
    asked = both.files.create(file=("b.jsonl", LINE), purpose="batch").id
    part = both.uploads.create(
        bytes=9, filename="a.jsonl", mime_type="text/plain", purpose="fine-tune"
    ).id

    assert infer.files.retrieve(asked).id == asked
    assert infer.files.content(asked).content == LINE
    for look in (infer.files.retrieve, infer.files.content, infer.files.delete):
        assert refused(look, training)["param"] == "file_id"
    error = refused(infer.files.create, file=("c.jsonl", LINE), purpose="fine-tune")
    assert error["message"].startswith("a file with the purpose fine-tune needs the scope train")
    assert error["param"] == "purpose"
    assert refused(infer.uploads.cancel, part)["param"] == "upload_id"
    assert refused(infer.uploads.parts.create, part, data=b"x")["param"] == "upload_id"
    refused(infer.uploads.complete, part, part_ids=["part_none"])

    def listed(client: openai.OpenAI, **fields: Any) -> set[str]:
        return {file.id for file in client.files.list(**fields)} & {training, asked}

    assert listed(both) == {training, asked}
    assert (listed(infer), listed(train)) == ({asked}, {training})
    assert listed(infer, purpose="fine-tune") == listed(both, purpose="nothing") == set()
    assert both.files.retrieve(training).id == training  # it was not deleted


def test_a_job_that_promotes_is_an_admins(client_of: Callable[..., openai.OpenAI]) -> None:
    trainer = client_of(TRAIN)
    file = trainer.files.create(file=("a.jsonl", LINE), purpose="fine-tune").id
    method: Any = {"type": "supervised", "modiste": {"promote": True}}

    create = trainer.fine_tuning.jobs.create
    error = refused(create, model="tiny", training_file=file, method=method)
    assert (error["param"], "admin" in error["message"]) == ("method.modiste.promote", True)
    method["modiste"]["promote"] = False
    assert create(model="tiny", training_file=file, method=method).status == "queued"
    both = client_of(TRAIN | ADMIN).fine_tuning.jobs
    method["modiste"]["promote"] = True
    assert both.create(model="tiny", training_file=file, method=method).status == "queued"


def test_a_key_that_opens_nothing_here_may_still_be_told_of_a_wrong_method(
    client_of: Callable[..., openai.OpenAI], served: Desk
) -> None:
    client = client_of(INFER)
    answer = client._client.put("/files", headers={"authorization": f"Bearer {client.api_key}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


def test_the_document_tells_which_scopes_open_each_route(
    client_of: Callable[..., openai.OpenAI], served: Desk
) -> None:
    with served.http() as http:
        document = http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    told = {
        (method.upper(), path): {name for one in operation["security"] for name in one["api_key"]}
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    by_path = {(method, path.replace(":path", "")): rows for (method, path), rows in ROUTES.items()}
    assert told
    assert told == {route: set(by_path[route]) for route in told}
    create = document["paths"]["/v1/fine_tuning/jobs"]["post"]
    assert create["responses"]["403"]["content"]["application/json"]["schema"]
    assert "train" in create["responses"]["403"]["description"]
