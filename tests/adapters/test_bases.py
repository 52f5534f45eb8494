"""Base models: fingerprints by content, and what may be recorded."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.bases import Base, chat_template, fingerprint, light_fingerprint, lora_architectures
from adapters.errors import BaseNotFound, InvalidInput, InvalidName
from adapters.registry import Registry

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "transformers_version": "5"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def _base(folder: Path, name: str = "tiny", **changes: Any) -> Base:
    known: dict[str, Any] = {
        "path": folder, "source": "tests", "ref": fingerprint(folder, name, "float32"),
        "context_length": 512, "architecture": "LlamaForCausalLM", "parameters": 1, "lora": True,
    }  # fmt: skip
    return Base(name=name, **{**known, **changes})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.json", "config"), ("tokenizer.json", "tokenizer"),
        ("chat_template.jinja", "chat_template"), ("model.safetensors", "weights"),
    ],
)  # fmt: skip
def test_each_part_of_a_base_has_a_digest_of_its_own(folder: Path, name: str, part: str) -> None:
    before = fingerprint(folder, "tiny", "float32")
    text = json.dumps({**CONFIG, "hidden_size": 65}) if part == "config" else "another"
    (folder / name).write_text(text)

    assert before.differences(fingerprint(folder, "tiny", "float32")) == [part]


def test_what_a_new_release_rewrites_in_the_config_changes_nothing(folder: Path) -> None:
    before = light_fingerprint(folder)
    rewritten = {**CONFIG, "transformers_version": "6", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(rewritten, indent=4))

    assert light_fingerprint(folder) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_folder_that_lacks_a_part_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(InvalidInput):
        light_fingerprint(folder)


def test_pickled_weights_are_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(InvalidInput, match="safetensors"):
        fingerprint(folder, "tiny", "float32")


def test_a_chat_template_is_also_found_in_the_tokenizers_config(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')

    assert chat_template(folder) == "{{ x }}"


def test_the_first_base_is_the_default_until_another_is_made_so(
    folder: Path, tmp_path: Path
) -> None:
    registry = Registry.open(tmp_path / "home")
    for name in ("zeta", "alpha"):
        registry.add_base(_base(folder, name))
    assert registry.base().name == "zeta"

    registry.add_base(_base(folder, "alpha"), default=True)

    assert [base.name for base in registry.bases()] == ["alpha", "zeta"]
    assert registry.base("zeta").ref == _base(folder, "zeta").ref


def test_a_name_never_comes_to_mean_another_base(folder: Path, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    registry.add_base(_base(folder))
    (folder / "model.safetensors").write_bytes(b"others")

    with pytest.raises(InvalidName, match="weights"):
        registry.add_base(_base(folder))


def test_an_unknown_base_is_told_with_the_known_ones(folder: Path, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    with pytest.raises(BaseNotFound, match="base add"):
        registry.base()
    registry.add_base(_base(folder))

    with pytest.raises(BaseNotFound, match="known: tiny"):
        registry.base("other")


def test_the_list_of_architectures_names_the_common_ones() -> None:
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM"} <= lora_architectures()
    assert not [name for name in lora_architectures() if not name.isidentifier()]
