"""Base models as this project knows them: a folder, its fingerprints, its limits."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from adapters.digests import digest_bytes, digest_file, digest_json
from adapters.errors import InvalidInput
from adapters.manifest import BaseRef
from adapters.prompt import Task

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_VOLATILE = {"_name_or_path", "_model_name_or_path", "transformers_version", "torch_dtype", "dtype"}


class Base(BaseModel):
    """One base model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: Path
    source: str
    ref: BaseRef
    context_length: int
    architecture: str
    parameters: int
    lora: bool
    lora_reason: str = ""
    tasks: list[Task] = []


@cache
def lora_architectures() -> frozenset[str]:
    """Architectures that vLLM serves with LoRA, read from its source when the lock is made."""
    text = resources.files("adapters").joinpath("lora_architectures.txt").read_text()
    return frozenset(line for line in text.split() if not line.startswith("#"))


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        InvalidInput: missing or no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{folder} is not a model: config.json is missing or unreadable",
            hint="give a folder that transformers' save_pretrained wrote",
            param="base",
        ) from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{path.name} is not a JSON object", param="base")
    return config


def chat_template(folder: Path) -> str | None:
    """The chat template as transformers finds it: its own file, else the tokenizer's config."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    path = folder / "tokenizer_config.json"
    if path.is_file():
        template = json.loads(path.read_text()).get("chat_template")
        return template if isinstance(template, str) else None
    return None


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def light_fingerprint(folder: Path) -> dict[str, str]:
    """Digests of config, tokenizer and chat template: what is cheap to check at each start.

    Raises:
        InvalidInput: the folder has no config, tokenizer or chat template.
    """
    config = {k: v for k, v in read_config(folder).items() if k not in _VOLATILE}
    tokenizers = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not tokenizers:
        raise InvalidInput(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)})")
    template = chat_template(folder)
    if not template:
        raise InvalidInput(
            f"{folder} has no chat template",
            hint="use an instruction-tuned model, or put its template into chat_template.jinja",
            param="base",
        )
    return {
        "config": digest_json(config),
        "tokenizer": digest_json([digest_file(path) for path in tokenizers]),
        "chat_template": digest_bytes(template.encode()),
    }


def fingerprint(folder: Path, name: str, dtype: str) -> BaseRef:
    """Fingerprint a base, weights included (reads every byte, about 1 GB/s).

    Raises:
        InvalidInput: no safetensors, or what `light_fingerprint` raises.
    """
    files = weight_files(folder)
    if not files:
        raise InvalidInput(
            f"{folder} has no safetensors weights",
            hint="convert the weights with transformers' save_pretrained; pickles are not read",
            param="base",
        )
    weights = digest_json({path.name: digest_file(path) for path in files})
    return BaseRef(name=name, dtype=dtype, weights=weights, **light_fingerprint(folder))
