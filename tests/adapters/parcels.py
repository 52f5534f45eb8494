"""Publishable folders without torch: a small LoRA, its config and its probe."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sqlalchemy import text

from adapters.gate import Check, Verdict
from adapters.manifest import BaseRef, Draft, Manifest
from adapters.probe import Probe, ProbeItem
from adapters.prompt import Task, default_prompt
from adapters.registry import Registry

DIGEST = "sha256:" + "0" * 64
BASE = BaseRef(
    name="b", config=DIGEST, tokenizer=DIGEST, chat_template=DIGEST, weights=DIGEST, dtype="float32"
)
PROBE = Probe(
    dtype="float32",
    items=[
        ProbeItem(
            prompt_ids=[1, 2], token_ids=[3, 4], adapter_logprobs=[-1.0, -2.0],
            base_logprobs=[-3.0, -4.0],
        )
    ],
)  # fmt: skip
A, B = "m.layers.0.q_proj.lora_A.weight", "m.layers.0.q_proj.lora_B.weight"


def parcel(folder: Path, value: float = 1.0, **config: Any) -> Path:
    """Write a folder that can be published; `value` makes its content another one."""
    folder.mkdir(parents=True)
    tensors = {A: np.ones((4, 8), np.float32), B: np.full((8, 4), value, np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(peft))
    PROBE.save(folder / "probe.json")
    return folder


def draft(folder: Path, name: str = "x", task: Task = "generate", **more: Any) -> Draft:
    peft = json.loads((folder / "adapter_config.json").read_text())
    return Draft(
        name=name, task=task, base=BASE, peft=peft, prompt=default_prompt(task),
        probe=PROBE.digest(), **more,
    )  # fmt: skip


def manifest(**peft: Any) -> Manifest:
    """What is known of a version without files."""
    known = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    return Manifest(
        name="x", task="generate", base=BASE, peft={**known, **peft}, probe=DIGEST, version=1,
        prompt=default_prompt("generate"), digest=DIGEST, created=datetime.now(UTC), size=1,
        files={},
    )  # fmt: skip


def verdict(passed: bool) -> Verdict:
    """What came of a gate that asked for more than 1 chrF over the base."""
    bound = 2.0 if passed else -1.0
    check = Check(
        metric="chrf", against="base", kept=False, limit=1, passed=passed, examples=100,
        ours=50, other=47, gain=3, bound=bound,
    )  # fmt: skip
    reason = f"gate {'passed' if passed else 'failed'}: chrf gained {bound:g} at least"
    return Verdict(passed=passed, reason=reason, confidence=0.95, checks=[check])


def registry_with(folder: Path, versions: int, *, failed: int | None = None) -> Registry:
    """A registry in `folder/home` whose adapter `x` has versions, made of `folder/NUMBER`.

    Args:
        failed: number of the version whose gate failed; the others have none.
    """
    registry = Registry.open(folder / "home")
    for number in range(1, versions + 1):
        made = parcel(folder / str(number), number)
        gate = verdict(passed=False) if number == failed else None
        registry.publish(made, draft(made, gate=gate))
    return registry


def execute(registry: Registry, statement: str) -> None:
    """Change the database behind the registry's back."""
    with registry.database.write() as session:
        session.execute(text(statement))
