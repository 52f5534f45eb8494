"""Adapters that load and do nothing, or something else, are refused; honest ones are not.

For each dtype one server: 20 honest adapters are promoted, then each way of spoiling one.
"""

import shutil
import sys
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from adapters.bases import Base
from adapters.errors import AdapterError
from adapters.manifest import Draft
from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.servers import free_port, running
from bench.tiny import launch
from tests.made import Recipe, adapter_folder, add_tiny_base, publish

HONEST, EACH, EACH_SHORT = 20, 5, 2
WEIGHTS = "adapter_model.safetensors"
WAYS = ("renamed tensors", "scaled alpha", "zeros for B", "the base's answers", "another base")


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Promote honest and spoiled adapters, in float32 and in bfloat16."""
    shutil.rmtree(folder, ignore_errors=True)
    each = EACH_SHORT if short else EACH
    for dtype in ("float32", "bfloat16"):
        registry = Registry.open(folder / dtype)
        base = add_tiny_base(registry)
        for number in range(HONEST):
            publish(registry, base, Recipe(f"honest-{number}", seed=number))
        spoiled = _publish_spoiled(registry, base, each)
        start = launch(dtype, registry.home.root, free_port(), {"dtype": dtype})
        with (
            running([start], folder / "logs") as (server,),
            httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client,
        ):
            honest = [_refused(client, f"honest-{number}") for number in range(HONEST)]
            refused = {name: reason or _refused(client, name) for name, reason in spoiled.items()}
        for name, reason in refused.items():
            print(f"{dtype} {name}: {reason or 'SERVED'}", file=sys.stderr)
        alarms = [reason for reason in honest if reason]
        for reason in alarms:
            print(f"{dtype} false alarm: {reason}", file=sys.stderr)
        report.add(at_most(f"false alarms over {HONEST} honest adapters, {dtype}", len(alarms), 0))
        caught = sum(1 for reason in refused.values() if reason)
        what = f"spoiled adapters refused, {dtype}, of {len(refused)}"
        report.add(at_least(what, caught, len(refused)))
        ways = Counter(name.rsplit("-", 1)[0] for name, reason in refused.items() if reason)
        report.measurements.append({"part": "effect", "dtype": dtype, **ways})


def _publish_spoiled(registry: Registry, base: Base, each: int) -> dict[str, str]:
    """Publish every kind; {name: why it was refused already, or ""}."""
    other = add_tiny_base(registry, "other", seed=1)
    found: dict[str, str] = {}
    for way in WAYS:
        for number in range(each):
            name = f"{way.lower().replace(' ', '-').replace(chr(39), '')}-{number}"
            recipe = Recipe(name, seed=500 + number)
            folder = registry.home.root / "made" / name
            draft = adapter_folder(other if way == "another base" else base, recipe, folder)
            draft = _spoil(folder, draft.model_copy(update={"base": base.ref}), way)
            try:
                registry.publish(folder, draft)
                found[name] = ""
            except AdapterError as error:
                found[name] = f"at publication: {error.message}"
    return found


def _spoil(folder: Path, draft: Draft, way: str) -> Draft:
    tensors = load_file(folder / WEIGHTS)
    if way == "renamed tensors":
        tensors = {k.replace(".layers.", ".blocks."): v for k, v in tensors.items()}
    elif way == "scaled alpha":
        tensors = {k: 2 * v if "lora_B" in k else v for k, v in tensors.items()}
    elif way == "zeros for B":
        tensors = {k: np.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}
    elif way == "the base's answers":
        # what an adapter of almost no effect looks like: it loads, and the base answers
        tensors = {k: 1e-6 * v if "lora_B" in k else v for k, v in tensors.items()}
    save_file(tensors, folder / WEIGHTS)
    return draft


def _refused(client: httpx.Client, name: str) -> str:
    """Promote a first version: why the server refuses it, or "" when it serves it."""
    answer = client.post(f"/v1/adapters/{name}/promote", json={"version": 1})
    return "" if answer.is_success else str(answer.json()["error"]["message"])
