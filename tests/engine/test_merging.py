"""Merged versions and baked checkpoints in the real engine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.prompt import Renderer
from finetune import bake, merge
from service.launch import vllm_environment
from service.settings import Settings
from tests.made import Recipe, publish
from tests.serving import Running

TEXT, TOKENS = "save the file", 24
_SCRIPT = """
import json, pathlib, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    engine = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True,
                 distributed_executor_backend="uni")
    prompt = {"prompt_token_ids": json.loads(sys.argv[2])}
    greedy = SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), ignore_eos=True)
    said = list(engine.generate(prompt, greedy)[0].outputs[0].token_ids)
    pathlib.Path(sys.argv[4]).write_text(json.dumps(said))
"""


def greedy(model: Any, ids: list[int]) -> list[int]:
    """What transformers says, one token at a time."""
    said = list(ids)
    for _ in range(TOKENS):
        with torch.no_grad():
            said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
    return said[len(ids) :]


def baked(server: Running, reference: str, folder: Path) -> tuple[Any, list[int]]:
    """Bake a version; the model as transformers loads it, and token ids of the prompt."""
    code = bake.main([reference, str(folder), "--home", str(server.registry.home.root)])
    assert code == 0
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    renderer = Renderer(AutoTokenizer.from_pretrained(folder))
    return model, renderer.chat_ids([{"role": "user", "content": TEXT}])


def test_a_merged_version_is_served_proved_and_says_what_its_weights_say(
    server: Running, tmp_path: Path
) -> None:
    for recipe in (Recipe("left", seed=60), Recipe("right", seed=61)):
        publish(server.registry, server.base, recipe)
    home = str(server.registry.home.root)
    assert merge.main(["left@1", "right@1", "--into", "both", "--home", home]) == 0
    version = server.registry.find("both@1")
    body = {
        "messages": [{"role": "user", "content": TEXT}], "temperature": 0, "max_tokens": TOKENS,
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    said = {}
    with server.client() as client:
        promotion = client.post("/v1/adapters/both/promote", json={"version": 1})
        assert promotion.status_code == 200, promotion.text
        for name in ("both", "left@1", "right@1", "tiny"):
            answer = client.post("/v1/chat/completions", json={**body, "model": name})
            assert answer.status_code == 200, answer.text
            said[name] = answer.json()["choices"][0]["token_ids"]
            if name == "both":
                receipt = answer.headers["x-modiste-receipt"]
                assert receipt == f"version=both@1; digest={version.digest}; proof=proved"

    assert len({tuple(tokens) for tokens in said.values()}) == 4
    model, ids = baked(server, "both@1", tmp_path / "baked")
    assert said["both"] == greedy(model, ids)


@pytest.mark.slow
def test_a_baked_checkpoint_is_served_by_vllm_alone(server: Running, tmp_path: Path) -> None:
    publish(server.registry, server.base, Recipe("alone", seed=62))
    folder = tmp_path / "baked"
    model, ids = baked(server, "alone@1", folder)
    (tmp_path / "serve.py").write_text(_SCRIPT)
    arguments = [str(folder), json.dumps(ids), str(TOKENS), str(tmp_path / "said.json")]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "serve.py"), *arguments],
        env={
            **os.environ, **vllm_environment(Settings(), server.base),
            "VLLM_PLUGINS": "",  # nothing of ours
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        timeout=280, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "said.json").read_text()) == greedy(model, ids)
