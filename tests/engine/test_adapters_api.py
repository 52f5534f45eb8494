"""The adapter routes of a running server: roll back, look at, verify, compare, collect."""

import time

import httpx

from tests.made import Recipe, publish
from tests.serving import Running


def model_of(client: httpx.Client, name: str) -> str:
    body = {"model": name, "messages": [{"role": "user", "content": "save"}], "max_tokens": 1}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return str(answer.json()["model"])


def test_a_rollback_is_served_when_it_is_answered(server: Running) -> None:
    for seed in (40, 41):
        publish(server.registry, server.base, Recipe("back", seed=seed))
    with server.client() as client:
        for number in (1, 2):
            client.post("/v1/adapters/back/promote", json={"version": number}).raise_for_status()
        assert model_of(client, "back") == "back@2"

        answer = client.post("/v1/adapters/back/rollback", json={"why": "complaints"})

        assert (answer.status_code, answer.json()["reference"]) == (200, "back@1")
        assert model_of(client, "back") == "back@1"
        *_, last = client.get("/v1/adapters/back/history").json()["data"]
        assert {k: last[k] for k in ("alias", "from", "to", "rollback", "why")} == {
            "alias": "production", "from": 2, "to": 1, "rollback": True, "why": "complaints"
        }  # fmt: skip
        assert abs(last["moved"] - time.time()) < 60
        again = client.post("/v1/adapters/back/rollback", json={})
        assert again.status_code == 404
        assert "no version before" in again.json()["error"]["message"]


def test_a_rollback_to_a_version_that_fails_its_proof_changes_nothing(server: Running) -> None:
    versions = [
        publish(server.registry, server.base, Recipe("stays", seed=seed)) for seed in (42, 43)
    ]
    for version in versions:  # nobody loaded the first
        server.registry.promote(version.reference)
    weights = versions[0].folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with server.client() as client:
        deadline = time.monotonic() + 10
        while client.get("/v1/models/stays").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shown = client.get("/v1/adapters/stays/versions/1").json()
        if shown["state"] == "ready":  # else the server was quick enough to load it in between
            answer = client.post("/v1/adapters/stays/rollback", json={})
            assert answer.json()["error"]["code"] == "digest_mismatch"
        assert model_of(client, "stays") == "stays@2"
        shown = client.get("/v1/adapters/stays/versions/1").json()
        assert (shown["state"], "altered" in shown["reason"]) == ("quarantined", True)
        verified = client.post("/v1/adapters/stays/versions/1/verify")
        assert verified.json()["error"]["code"] == "quarantined"
    assert server.registry.aliases("stays") == {"production": 2}


def test_versions_are_shown_verified_and_compared(server: Running) -> None:
    publish(server.registry, server.base, Recipe("pair", seed=44))
    publish(server.registry, server.base, Recipe("pair", seed=45, rank=4))
    with server.client() as client:
        shown = client.get("/v1/adapters/pair/versions/2").json()
        assert shown["manifest"]["peft"]["r"] == 4
        assert shown["manifest"]["digest"] == shown["digest"]
        assert client.post("/v1/adapters/pair/versions/2/verify").json()["verified"] is True

        answer = client.get("/v1/adapters/pair/diff", params={"from": 1, "to": 2}).json()
        fields = {row["field"]: (row["from"], row["to"]) for row in answer["data"]}
        assert fields["peft.r"] == (8, 4)
        assert client.get("/v1/adapters/pair/versions/9").status_code == 404
        bad = client.get("/v1/adapters/pair/diff", params={"from": 1})
        assert (bad.status_code, bad.json()["error"]["code"]) == (400, "missing_field")


def test_what_the_server_holds_is_not_collected(server: Running) -> None:
    for seed in (46, 47, 48):
        publish(server.registry, server.base, Recipe("worn", seed=seed))
    with server.client() as client:
        assert model_of(client, "worn@1") == "worn@1"
        body = {"keep": 1, "older_than_days": 0}
        would = client.post("/v1/adapters/gc", json={**body, "dry_run": True}).json()

        # other versions of this session's server are its own tests' business
        assert "worn@1" not in would["versions"]
        assert "worn@2" in would["versions"]
        assert server.registry.find("worn@2").state == "ready"
        bad = client.post("/v1/adapters/gc", json={"keep": -1})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "keep")
