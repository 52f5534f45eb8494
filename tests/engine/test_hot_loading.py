"""Adapters published and promoted while the server runs."""

import json
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from adapters.probe import Probe
from tests.made import Recipe, adapter_folder, publish
from tests.serving import Running

CHAT = {"messages": [{"role": "user", "content": "save the file"}], "temperature": 0}


def ask(client: httpx.Client, model: str, tokens: int = 10) -> tuple[str, str]:
    answer = client.post(
        "/v1/chat/completions", json={**CHAT, "model": model, "max_tokens": tokens}
    )
    answer.raise_for_status()
    body = answer.json()
    return body["model"], body["choices"][0]["message"]["content"]


def test_a_promotion_is_served_within_a_second_and_breaks_no_request(server: Running) -> None:
    publish(server.registry, server.base, Recipe("switch", seed=10))
    publish(server.registry, server.base, Recipe("switch", seed=11))
    server.registry.promote("switch@1")
    seen: list[tuple[float, str, str]] = []
    stop = threading.Event()

    def load() -> None:
        with server.client() as client:
            while not stop.is_set():
                sent = time.monotonic()
                seen.append((sent, *ask(client, "switch")))

    with server.client() as client:
        alone = {name: ask(client, name)[1] for name in ("switch@1", "switch@2")}
        deadline = time.monotonic() + 10
        while client.get("/v1/models/switch").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    server.registry.promote("switch@2")
    moved = time.monotonic()
    while sum(sent > moved + 1.0 for sent, _, _ in list(seen)) < len(threads):
        assert time.monotonic() < moved + 60
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()

    assert {(name, alone[name] == text) for _, name, text in seen} == {
        ("switch@1", True), ("switch@2", True)
    }  # fmt: skip
    assert {name for sent, name, _ in seen if sent > moved + 1.0} == {"switch@2"}


def test_a_stream_keeps_its_version_while_the_alias_moves(server: Running) -> None:
    publish(server.registry, server.base, Recipe("steady", seed=12))
    publish(server.registry, server.base, Recipe("steady", seed=13))
    server.registry.promote("steady@1")
    with server.client() as client:
        _, alone = ask(client, "steady@1", 300)
        body = {**CHAT, "model": "steady@1", "max_tokens": 300, "stream": True}
        text, models = "", set()
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            for number, line in enumerate(stream.iter_lines()):
                if number == 10:
                    server.registry.promote("steady@2")
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    models.add(chunk["model"])
                    text += chunk["choices"][0]["delta"].get("content") or ""

    assert models == {"steady@1"}
    assert text == alone


def _spoil(server: Running, recipe: Recipe, change: str) -> str:
    """Publish a version whose probe or weights are not honest; returns its reference."""
    folder = server.registry.home.root / "made" / f"{recipe.name}-bad"
    draft = adapter_folder(server.base, recipe, folder)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    if change == "scaled":
        tensors = {k: v * 1.5 if "lora_B" in k else v for k, v in tensors.items()}
    elif change == "renamed":
        tensors = {k.replace(".layers.", ".blocks."): v for k, v in tensors.items()}
    elif change == "shapes":
        tensors = {k: v[:, :-1].copy() if "lora_A" in k else v for k, v in tensors.items()}
    save_file(tensors, weights)
    if change == "base answers":
        probe = Probe.load(folder / "probe.json")
        items = [i.model_copy(update={"adapter_logprobs": i.base_logprobs}) for i in probe.items]
        spoiled = Probe(dtype=probe.dtype, items=items)
        spoiled.save(folder / "probe.json")
        draft = draft.model_copy(update={"probe": spoiled.digest()})
    return server.registry.publish(folder, draft).reference


@pytest.mark.parametrize("change", ["scaled", "renamed", "shapes", "base answers"])
def test_a_version_that_fails_its_proof_is_quarantined_and_nothing_else_is_touched(
    server: Running, change: str
) -> None:
    recipe = Recipe(f"bad-{change.replace(' ', '-')}", seed=20)
    good = publish(server.registry, server.base, recipe)
    server.registry.promote(good.reference)
    bad = _spoil(server, Recipe(recipe.name, seed=21), change)

    with server.client() as client:
        name, before = ask(client, f"{recipe.name}@1")
        answer = client.post("/v1/chat/completions", json={**CHAT, "model": bad})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in ("proof_failed", "quarantined")
        promotion = client.post(f"/v1/adapters/{recipe.name}/promote", json={"version": 2})
        assert promotion.status_code == 400
        assert ask(client, f"{recipe.name}@1") == (name, before)
        assert ask(client, recipe.name)[0] == good.reference

    quarantined = server.registry.find(bad)
    assert quarantined.state == "quarantined"
    assert quarantined.reason


def test_altered_files_are_found_before_they_are_loaded(server: Running) -> None:
    version = publish(server.registry, server.base, Recipe("altered", seed=30))
    path = version.folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    answer = server.client().post("/v1/chat/completions", json={**CHAT, "model": "altered@1"})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "digest_mismatch"


def test_an_adapter_for_another_base_is_refused_with_the_remedy(server: Running) -> None:
    recipe = Recipe("foreign", seed=31)
    folder = server.registry.home.root / "made" / "foreign"
    draft = adapter_folder(server.base, recipe, folder)
    other = server.base.ref.model_copy(update={"weights": "sha256:" + "1" * 64})
    server.registry.publish(folder, draft.model_copy(update={"base": other}))

    answer = server.client().post("/v1/chat/completions", json={**CHAT, "model": "foreign@1"})

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "incompatible_adapter"
    assert "weights" in error["message"]
    assert server.registry.find("foreign@1").state == "ready"  # sound, for its own base


def test_the_engine_lives_on_when_the_store_vanishes(server: Running, tmp_path: Path) -> None:
    version = publish(server.registry, server.base, Recipe("gone", seed=32))
    cold = publish(server.registry, server.base, Recipe("colder", seed=33))
    with server.client() as client:
        before = ask(client, "gone@1")
        shutil.move(version.folder, tmp_path / "away")
        shutil.move(cold.folder, tmp_path / "cold")
        assert ask(client, "gone@1") == before
        answer = client.post("/v1/chat/completions", json={**CHAT, "model": "colder@1"})
        assert answer.status_code in (404, 503), answer.text
        shutil.move(tmp_path / "cold", cold.folder)
        shutil.move(tmp_path / "away", version.folder)
        assert ask(client, "colder@1")[0] == "colder@1"
        assert client.get("/health/live").status_code == 200


def test_more_versions_than_places_all_answer_as_themselves(server: Running) -> None:
    recipes = [Recipe(f"many-{n}", seed=100 + n) for n in range(36)]
    for recipe in recipes:
        publish(server.registry, server.base, recipe)

    with server.client() as client:
        first = {r.name: ask(client, f"{r.name}@1")[1] for r in recipes}
        again = {r.name: ask(client, f"{r.name}@1")[1] for r in recipes}
        resident = next(
            line for line in client.get("/metrics").text.splitlines()
            if line.startswith("modiste_resident_versions ")
        )  # fmt: skip

    assert first == again
    assert len(set(first.values())) == len(recipes)
    assert float(resident.split()[1]) <= 32


def test_an_honest_adapter_with_hardly_an_effect_is_proved_and_told_so(server: Running) -> None:
    version = publish(server.registry, server.base, Recipe("weak", seed=90, scale=2e-6))
    effect = Probe.load(version.folder / "probe.json").effect()
    assert 0 < effect < 1e-4
    with server.client() as client:
        assert ask(client, "weak@1")[0] == "weak@1"
        here = client.get("/v1/adapters/weak/versions/1").json()["here"]
    assert here["loaded"]
    assert here["proof"]["proved"]
    assert here["proof"]["effect"] == effect


def test_a_place_is_freed_by_hand_and_taken_again_on_demand(server: Running) -> None:
    publish(server.registry, server.base, Recipe("freed", seed=91))
    with server.client() as client:
        before = ask(client, "freed@1")
        path = "/v1/adapters/freed/versions/1"
        unloaded = [client.post(f"{path}/unload").json()["was_loaded"] for _ in range(2)]
        assert unloaded == [True, False]
        assert not client.get(path).json()["here"]["loaded"]
        assert ask(client, "freed@1") == before
        client.post("/v1/adapters/freed/promote", json={"version": 1}).raise_for_status()
        refused = client.post(f"{path}/unload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "version_is_live")
