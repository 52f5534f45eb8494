"""Adapters of another trainer in a real server, and what that server says that it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.compatibility import Takes
from adapters.errors import IncompatibleAdapter
from adapters.registry import Version
from finetune.foreign import Wanted, import_foreign
from tests.adapters.variants import Variant, train
from tests.made import Recipe, publish
from tests.serving import Running

SERVED = {
    "stabilised": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 8, "1.mlp.up_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    "both": {"use_rslora": True, "rank_pattern": {"q_proj": 8}},
    "layer": {"layers_to_transform": [1]},
    "pattern": {"target_modules": r".*\.(0\.self_attn|1\.mlp)\.(q|v|up)_proj"},
    "spared": {"exclude_modules": ["0.self_attn.q_proj"], "target_modules": "all-linear"},
}


def bring(server: Running, name: str, options: dict[str, Any], folder: Path) -> Version:
    train(server.base.path, Variant(options), folder)
    return import_foreign(server.registry, folder, Wanted(name=name))


def test_variants_that_are_accepted_are_proved_by_the_engine(
    server: Running, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    with server.client() as client:
        for name, options in SERVED.items():
            version = bring(server, f"kind-{name}", options, tmp_path / name)
            answer = client.post("/v1/generate", json={"prompt": "a", "model": version.reference})

            assert answer.status_code == 200, answer.text
            assert answer.headers["x-modiste-receipt"].endswith("proof=proved")


def test_what_the_server_cannot_take_is_published_with_a_warning_and_not_promoted(
    server: Running, tmp_path: Path
) -> None:
    version = bring(server, "too-wide", {"r": 24}, tmp_path / "wide")

    [warning] = server.registry.misfits(version)
    assert "too-wide@1: it has rank 24, the server takes 16: restart it with" in warning
    with pytest.raises(IncompatibleAdapter, match=f"process {server.process.pid}"):
        server.registry.promote(version.reference)
    with server.client() as client:
        answer = client.post("/v1/adapters/too-wide/promote", json={"version": 1, "force": True})
        assert answer.json()["error"]["code"] == "incompatible_adapter"  # the server itself
        assert "max_lora_rank 32" in answer.json()["error"]["hint"]


def test_a_server_asks_the_others_before_it_promotes(server: Running) -> None:
    publish(server.registry, server.base, Recipe("asked", seed=60))
    takes = Takes(base=server.base.ref, max_rank=1, target_modules=frozenset())
    server.registry.announce("narrow", takes)
    try:
        with server.client() as client:
            answer = client.post("/v1/adapters/asked/promote", json={"version": 1})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "version")
            assert "narrow (process 0) can't take asked@1" in error["message"]
            tar = client.get("/v1/adapters/asked/versions/1/export").content
            sent = client.post("/v1/adapters/import", content=tar, params={"name": "told"})
            assert ["narrow" in warning for warning in sent.json()["warnings"]] == [True]
            forced = {"version": 1, "force": True}
            assert client.post("/v1/adapters/asked/promote", json=forced).status_code == 200
    finally:
        server.registry.withdraw("narrow")
