"""The adapter routes of a running server: roll back, look at, verify, compare, collect."""

import gzip
import io
import socket
import tarfile
import time
from collections.abc import Callable

import httpx
import pytest

from tests.adapters.parcels import verdict
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


def test_a_canary_answers_its_share_until_it_is_promoted(server: Running) -> None:
    for seed in (52, 53):
        publish(server.registry, server.base, Recipe("tried", seed=seed))
    body = {"model": "tried", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    with server.client() as client:

        def sides() -> list[str]:
            return [
                client.post(
                    "/v1/chat/completions", json=body, headers={"x-modiste-sticky-key": str(key)}
                ).json()["model"]
                for key in range(40)
            ]

        client.post("/v1/adapters/tried/promote", json={"version": 1}).raise_for_status()
        start = client.post("/v1/adapters/tried/canary", json={"version": 2, "percent": 50})
        assert (start.status_code, start.json()["percent"]) == (200, 50)
        shown = client.get("/v1/adapters/tried").json()
        canary = shown["canaries"]["production"]
        assert (canary["version"], canary["percent"], canary["rule"]) == (2, 50, None)
        first = sides()
        assert 8 < first.count("tried@2") < 32
        assert sides() == first
        metrics = client.get("/metrics").text
        counted = [line for line in metrics.splitlines() if "modiste_requests_total" in line]
        for version in (1, 2):
            labels = ('adapter="tried"', f'version="{version}"', 'status="200"')
            assert any(all(label in line for label in labels) for line in counted)

        end = client.post("/v1/adapters/tried/canary/end", json={"promote": True})
        assert end.json()["reference"] == "tried@2"
        assert set(sides()) == {"tried@2"}
        again = client.post("/v1/adapters/tried/canary/end", json={"promote": True})
        assert (again.status_code, "no canary" in again.json()["error"]["message"]) == (404, True)
        bad = client.post("/v1/adapters/tried/canary", json={"version": 1, "percent": 100})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "percent")


def test_low_scores_end_a_canary_by_its_rule(server: Running) -> None:
    for seed in (56, 57):
        publish(server.registry, server.base, Recipe("scored", seed=seed))
    body = {"model": "scored", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    with server.client() as client:
        client.post("/v1/adapters/scored/promote", json={"version": 1}).raise_for_status()
        start = {"version": 2, "percent": 50, "rule": {"least_answers": 20, "least_scores": 10}}
        client.post("/v1/adapters/scored/canary", json=start).raise_for_status()
        for _ in range(80):
            answer = client.post("/v1/chat/completions", json=body)
            version = int(answer.json()["model"].partition("@")[2])
            opinion = {
                "version": version, "score": 1.0 if version == 1 else 0.0,
                "request_id": answer.headers["x-request-id"],
            }  # fmt: skip
            given = client.post("/v1/adapters/scored/feedback", json=opinion)
            assert (given.status_code, given.json()["score"]) == (200, opinion["score"])
        deadline = time.monotonic() + 10
        while client.get("/v1/adapters/scored").json()["canaries"]:
            answer = client.post("/v1/chat/completions", json=body)
            assert time.monotonic() < deadline
        last = client.get("/v1/adapters/scored/history").json()["data"][-1]
        assert (last["who"], last["percent"]) == ("rule", 0)
        assert "mean score 0 of" in last["why"]
        until = time.monotonic() + 2  # it is on record; the server looks for it now and then
        while {model_of(client, "scored") for _ in range(10)} != {"scored@1"}:
            assert time.monotonic() < until

        bad = client.post("/v1/adapters/scored/feedback", json={**opinion, "score": 7})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "score")
        none = client.post("/v1/adapters/scored/feedback", json={**opinion, "version": 9})
        assert none.status_code == 404


def test_a_failed_gate_bars_promotion_until_it_is_forced_with_a_reason(server: Running) -> None:
    publish(server.registry, server.base, Recipe("gated", seed=58), gate=verdict(passed=True))
    publish(server.registry, server.base, Recipe("gated", seed=59), gate=verdict(passed=False))
    with server.client() as client:
        route = "/v1/adapters/gated"
        client.post(f"{route}/promote", json={"version": 1}).raise_for_status()
        failed = client.get(f"{route}/versions/2").json()["gate"]
        assert (failed["passed"], failed["checks"][0]["bound"]) == (False, -1)

        barred = client.post(f"{route}/promote", json={"version": 2, "why": "fine"})
        error = barred.json()["error"]
        assert (barred.status_code, error["code"], error["param"]) == (
            400,
            "gate_failed",
            "version",
        )
        assert "chrf gained -1" in error["message"]
        assert not client.get(f"{route}/versions/2").json()["here"]["loaded"]
        bare = client.post(f"{route}/promote", json={"version": 2, "force": True})
        assert (bare.status_code, bare.json()["error"]["param"]) == (400, "why")
        ruled = {"version": 2, "percent": 10, "rule": {"promote_after": 50}}
        early = client.post(f"{route}/canary", json=ruled)
        assert early.json()["error"]["code"] == "gate_failed"

        client.post(f"{route}/canary", json={"version": 2, "percent": 10}).raise_for_status()
        end = {"promote": True}
        answer = client.post(f"{route}/canary/end", json=end)
        assert answer.json()["error"]["code"] == "gate_failed"
        assert model_of(client, "gated@1") == "gated@1"
        answer = client.post(
            f"{route}/canary/end", json={**end, "force": True, "why": "users prefer it"}
        )
        assert (answer.status_code, answer.json()["reference"]) == (200, "gated@2")
        assert model_of(client, "gated") == "gated@2"
        *_, last = client.get(f"{route}/history").json()["data"]
        assert last["why"] == "forced past its gate: users prefer it"


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


def test_a_version_travels_as_a_tar_and_answers_alike(server: Running) -> None:
    version = publish(server.registry, server.base, Recipe("travels", seed=50))
    with server.client() as client:
        answer = client.get("/v1/adapters/travels/versions/1/export")
        assert answer.headers["content-type"] == "application/x-tar"
        assert client.get("/v1/adapters/travels/versions/1/export").content == answer.content

        for name, packed in (
            ("arrived", answer.content),
            ("packed", gzip.compress(answer.content)),
        ):
            sent = client.post("/v1/adapters/import", params={"name": name}, content=packed)
            assert (sent.status_code, sent.json()["reference"]) == (201, f"{name}@1")
            assert sent.json()["digest"] == version.digest
            assert model_of(client, f"{name}@1") == f"{name}@1"
        again = client.post("/v1/adapters/import", content=answer.content)
        assert again.json()["reference"] == "travels@1"
        assert client.get("/v1/adapters/travels/versions/7/export").status_code == 404
    assert not [path for path in server.registry.store.staging.iterdir() if path.is_dir()]


def _altered(tar: bytes) -> bytes:
    place = tar.index(b"adapter_model.safetensors") + 4096
    return tar[:place] + bytes([tar[place] ^ 1]) + tar[place + 1 :]


def _without_manifest(tar: bytes) -> bytes:
    made = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar)) as given,
        tarfile.open(fileobj=made, mode="w") as new,
    ):
        for member in given:
            if not member.name.endswith("manifest.json"):
                new.addfile(member, given.extractfile(member))
    return made.getvalue()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_altered, "digest_mismatch"),
        (lambda tar: tar[: len(tar) // 2], "invalid_value"),
        (lambda _: b"", "invalid_value"),
    ],
)
def test_a_tar_that_is_not_a_whole_export_is_refused(
    server: Running, spoil: Callable[[bytes], bytes], code: str
) -> None:
    publish(server.registry, server.base, Recipe("refused", seed=51))
    with server.client() as client:
        tar = client.get("/v1/adapters/refused/versions/1/export").content
        answer = client.post("/v1/adapters/import", params={"name": "never"}, content=spoil(tar))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
        assert client.get("/v1/adapters/never").status_code == 404


def test_what_peft_saved_is_probed_by_a_child_and_answers(server: Running) -> None:
    publish(server.registry, server.base, Recipe("saved", seed=58))
    with server.client() as client:
        tar = _without_manifest(client.get("/v1/adapters/saved/versions/1/export").content)
        unnamed = client.post("/v1/adapters/import", content=tar)
        assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "name")
        unlabelled = client.post(
            "/v1/adapters/import", params={"name": "brought", "task": "classify"}, content=tar
        )
        assert (unlabelled.status_code, unlabelled.json()["error"]["param"]) == (400, "task")

        sent = client.post("/v1/adapters/import", params={"name": "brought"}, content=tar)

        assert (sent.status_code, sent.json().get("reference")) == (201, "brought@1"), sent.text
        assert model_of(client, "brought@1") == "brought@1"
        here = client.get("/v1/adapters/brought/versions/1").json()["here"]
        assert here["proof"]["proved"]


def test_versions_are_merged_over_http(server: Running) -> None:
    for name, seed in (("left", 59), ("right", 60)):
        publish(server.registry, server.base, Recipe(name, seed=seed))
    with server.client() as client:
        body = {"parents": ["left@1", "right@1"], "into": "both", "weights": [0.75, 0.25]}
        made = client.post("/v1/adapters/merge", json={**body, "method": "linear"})
        assert (made.status_code, made.json().get("reference")) == (201, "both@1"), made.text
        manifest = client.get("/v1/adapters/both/versions/1").json()["manifest"]
        assert [parent.partition("@")[0] for parent in manifest["parents"]] == ["left", "right"]
        assert model_of(client, "both@1") == "both@1"

        wrong = client.post("/v1/adapters/merge", json={**body, "method": "average"})
        assert wrong.status_code == 400
        none = client.post("/v1/adapters/merge", json={**body, "parents": ["left@1", "--help"]})
        assert none.status_code == 400


def test_an_upload_that_is_cut_off_leaves_nothing(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/adapters/import HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nabc"
        )
        deadline = time.monotonic() + 5
        while not (staged := list(server.registry.store.staging.iterdir())):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    while any(path.exists() for path in staged):
        assert time.monotonic() < deadline
        time.sleep(0.02)
