"""Another trainer's adapter against the base: what fits, what has effect, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from adapters.bases import Base
from adapters.errors import AdapterError, IncompatibleAdapter
from adapters.prompt import GenerateInput, Renderer, default_prompt
from adapters.registry import Registry
from finetune.base_model import load_model
from finetune.foreign import TEXTS, Wanted, import_foreign, probe_prompts
from tests.made import Recipe, random_adapter

WEIGHTS = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry.open(home)


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    """A LoRA as peft itself saves it, README included."""
    random_adapter(base, Recipe("x")).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.fixture
def refused(registry: Registry, folder: Path) -> Callable[[], str]:
    """Import the folder, which must be refused; the code and the message."""

    def call() -> str:
        with pytest.raises(AdapterError) as caught:
            import_foreign(registry, folder, Wanted(name="x"))
        assert registry.adapters() == []
        assert list(registry.store.staging.glob("*")) == []
        return f"{caught.value.code}: {caught.value.message}"

    return call


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_peft_saves_of_other_kinds_is_refused(
    refused: Any, folder: Path, base: Base, variant: dict[str, Any]
) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **variant)
    get_peft_model(load_model(base.path, "float32", "cpu"), config).save_pretrained(folder)

    assert next(iter(variant)) in refused()


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (Q.replace("q_proj", "q_projection"), "no linear layer of base tiny"),
        (Q.replace("layers.0", "layers.7"), "no linear layer of base tiny"),
        (Q.removeprefix("base_model.model."), "no linear layer of base tiny"),
        (Q.replace("self_attn.q_proj", "input_layernorm"), "no linear layer of base tiny"),
        ("base_model.model.lm_head", "never adapted"),
    ],
)
def test_a_renamed_tensor_is_refused_although_peft_would_pass_over_it(
    refused: Any, folder: Path, new: str, words: str
) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        for side in ("lora_A", "lora_B"):
            tensors[f"{new}.{side}.weight"] = tensors.pop(f"{Q}.{side}.weight")

    change_tensors(folder, rename)

    told = refused()
    assert words in told
    assert f"{new}.lora_" in told


@pytest.mark.parametrize(
    ("side", "cut", "shapes"),
    [
        ("A", lambda t: t[:, :48].clone(), "[8, 48], base tiny needs [8, 64]"),
        ("B", lambda t: t[:32].clone(), "[32, 8], base tiny needs [64, 8]"),
        ("B", lambda t: t.flatten(), "[512], which is no matrix"),
        ("A", lambda t: t[:4].clone(), "rank 4"),
    ],
)
def test_a_tensor_of_another_shape_is_refused_with_both(
    refused: Any, folder: Path, side: str, cut: Any, shapes: str
) -> None:
    name = f"{Q}.lora_{side}.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: cut(tensors[name])}))

    told = refused()
    assert name in told
    assert shapes in told


def test_a_matrix_without_its_other_half_is_refused(refused: Any, folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(f"{Q}.lora_B.weight"))

    assert "model.layers.0.self_attn.q_proj has only one of" in refused()


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("lora_B", 0.0, "changes nothing"),
        ("lora_A", 0.0, "has no effect"),
        ("lora_A", float("nan"), "not finite"),
    ],
)
def test_an_adapter_that_does_nothing_or_nonsense_is_refused(
    refused: Any, folder: Path, part: str, value: float, words: str
) -> None:
    def fill(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if part in name:
                tensor.fill_(value)

    change_tensors(folder, fill)

    assert words in refused()


def test_an_adapter_of_little_effect_is_published_with_a_warning(
    registry: Registry, folder: Path
) -> None:
    def shrink(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.mul_(1e-4)

    change_tensors(folder, shrink)
    told: list[str] = []
    import_foreign(registry, folder, Wanted(name="x"), told.append)

    [warning] = [line for line in told if line.startswith("warning")]
    assert "it changes the probe by" in warning
    assert "--prompts FILE" in warning


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_not_read(refused: Any, folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)

    assert refused().startswith(f"unsafe_file: {name}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (WEIGHTS, b"\x00" * 40, "not a whole safetensors file"),
        ("adapter_config.json", b"{", "not JSON"),
        ("adapter_config.json", b"[]", "not a JSON object"),
        ("adapter_config.json", b"[" * 100_000, "not JSON"),
        ("adapter_config.json", None, "is missing"),
        (WEIGHTS, None, "is missing"),
    ],
)
def test_damaged_files_are_told(
    refused: Any, folder: Path, name: str, content: bytes | None, words: str
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)

    told = refused()
    assert words in told
    assert name in told


def test_a_base_that_cannot_be_adapted_is_told(
    registry: Registry, base: Base, folder: Path
) -> None:
    registry.add_base(base.model_copy(update={"lora": False, "lora_reason": "no LoRA"}))

    with pytest.raises(IncompatibleAdapter, match="no LoRA"):
        import_foreign(registry, folder, Wanted(name="x"))


def test_the_default_texts_are_as_many_different_prompts(renderer: Renderer, base: Base) -> None:
    wanted = Wanted(name="x")
    ids = probe_prompts(renderer, wanted, base)

    assert len({tuple(prompt) for prompt in ids}) == len(TEXTS) >= 4
    assert ids[0] == renderer.prompt_ids(default_prompt("generate"), GenerateInput(TEXTS[0]))
