"""What is served of peft, line by line against peft and vLLM themselves."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    LoraGAConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from vllm.config.lora import MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper

from adapters.compatibility import (
    RANKS,
    READ,
    REFUSED,
    WITHOUT_EFFECT,
    Takes,
    check_config,
    check_tensors,
    rank_of,
)
from adapters.errors import IncompatibleAdapter
from tests.adapters.parcels import BASE, manifest
from tests.adapters.variants import Outcome, Variant, logits, train, vllm_serves
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of what is tried here

WEIGHTS = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


def check(folder: Path) -> None:
    """What is asked of an adapter's own files when it is published."""
    check_config(config_of(folder))
    check_tensors(folder / WEIGHTS, config_of(folder))


def refusal(folder: Path) -> str:
    """The message with its remedy."""
    with pytest.raises(IncompatibleAdapter) as caught:
        check(folder)
    assert caught.value.hint
    return str(caught.value)


def merged(base: Path, folder: Path) -> torch.Tensor:
    """What the model answers that results from the remedy, [T, V]."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(folder)).merge_and_unload().save_pretrained(folder / "m")
    return logits(AutoModelForCausalLM.from_pretrained(folder / "m", dtype=torch.float32))


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


SERVED = {
    "nothing special": {},
    "rank-stabilised": {"use_rslora": True},
    "ranks by module": {"rank_pattern": {"q_proj": 8}},
    "ranks by whole names": {
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 8, "^model.layers.1.mlp.up_proj$": 2}
    },
    "alphas by module": {"alpha_pattern": {"q_proj": 3}},
    "all three": {
        "use_rslora": True, "rank_pattern": {"q_proj": 8, "0.mlp.up_proj": 2},
        "alpha_pattern": {"up_proj": 3},
    },
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "modules left out": {"exclude_modules": ["0.self_attn.q_proj"]},
    "names that the base lacks": {"target_modules": ["q_proj", "query_key_value"]},
    "whole names": {"target_modules": ["model.layers.1.mlp.down_proj"]},
    "all linear modules": {"target_modules": "all-linear"},
    "dropout": {"lora_dropout": 0.3},
    "transposed base weights": {"fan_in_fan_out": True},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "random start": {"init_lora_weights": False},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
    "mica start": {"init_lora_weights": "mica"},
    "eva start": {"init_lora_weights": "eva"},
    "tied weights": {"ensure_weight_tying": True},
    "no tokens that invoke it": {"alora_invocation_tokens": []},
}  # fmt: skip


@pytest.mark.parametrize("options", SERVED.values(), ids=SERVED.keys())
def test_what_vllm_serves_as_it_was_trained_is_accepted(
    base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    trained = train(base, Variant(options), tmp_path / "lora")

    assert vllm_serves(base, tmp_path / "lora", trained) == "right"
    check(tmp_path / "lora")


REFUSALS: dict[str, tuple[Variant, Outcome]] = {
    "DoRA": (Variant({"use_dora": True}), "raises"),
    "a trained head": (Variant({"modules_to_save": ["lm_head"]}), "raises"),
    "a trained norm": (Variant({"modules_to_save": ["norm"]}), "raises"),
    "all biases": (Variant({"bias": "all"}), "raises"),
    "biases of adapted modules": (Variant({"bias": "lora_only"}), "raises"),
    "a bias of B": (Variant({"lora_bias": True}), "raises"),
    "trained tokens": (Variant({"trainable_token_indices": [7, 30]}), "raises"),
    "an adapted head": (Variant({"target_modules": ["q_proj", "lm_head"]}), "wrong"),
    "adapted embeddings": (Variant({"target_modules": ["q_proj", "embed_tokens"]}), "wrong"),
    "PiSSA": (Variant({"init_lora_weights": "pissa"}), "raises"),
    "fast PiSSA": (Variant({"init_lora_weights": "pissa_niter_2"}), "raises"),
    "OLoRA": (Variant({"init_lora_weights": "olora"}), "raises"),
    "LoRA-GA": (
        Variant({"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}),
        "wrong",
    ),
    "LoftQ": (Variant(edit={"init_lora_weights": "loftq"}), "raises"),
    "CorDA": (Variant(edit={"init_lora_weights": "corda"}), "raises"),
    "aLoRA": (Variant({"alora_invocation_tokens": [42, 7]}), "raises"),
    "repeated layers": (Variant({"layer_replication": [[0, 2], [1, 2]]}), "raises"),
    "BD-LoRA": (
        Variant({"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj", "up_proj"], nblocks=2)}),
        "raises",
    ),
    "QALoRA": (Variant(edit={"use_qalora": True}), "raises"),
    "KaSA": (Variant({"kasa_config": KasaConfig()}), "raises"),
    "MonteCLoRA": (Variant({"monteclora_config": MontecloraConfig()}), "raises"),
    "VeLoRA": (Variant({"velora_config": VeloraConfig()}), "raises"),
    "LoHa": (Variant(kind=LoHaConfig), "raises"),
    "LoKr": (Variant(kind=LoKrConfig), "raises"),
    "OFT": (Variant({"oft_block_size": 8, "r": 0}, OFTConfig), "raises"),
    "IA3": (Variant({"feedforward_modules": ["up_proj"]}, IA3Config), "raises"),
    "AdaLoRA": (Variant({"total_step": 10}, AdaLoraConfig), "raises"),
    "VeRA": (Variant(kind=VeraConfig), "raises"),
}


@pytest.mark.parametrize(("variant", "outcome"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_vllm_refuses_or_serves_wrong_is_refused_before_with_a_remedy(
    base: Path, tmp_path: Path, variant: Variant, outcome: Outcome
) -> None:
    trained = train(base, variant, tmp_path / "lora")

    assert vllm_serves(base, tmp_path / "lora", trained) == outcome
    if "merge_and_unload" in refusal(tmp_path / "lora"):
        assert torch.allclose(merged(base, tmp_path / "lora"), trained, atol=1e-3)


@pytest.mark.parametrize(
    "edit",
    [
        {"arrow_config": {"top_k": 1}}, {"megatron_config": {"hidden_size": 64}},
        {"kasa_config": {}}, {"an_option_of_tomorrow": 2}, {"modules_to_save": ["score"]},
        {"peft_type": "LOHA"},
    ],
)  # fmt: skip
def test_an_option_that_vllm_does_not_look_at_is_refused(
    base: Path, tmp_path: Path, edit: dict[str, Any]
) -> None:
    plain = train(base, Variant(edit=edit), tmp_path / "lora")

    assert vllm_serves(base, tmp_path / "lora", plain) == "right"  # as if it were not there
    assert refusal(tmp_path / "lora")


def test_a_converted_pissa_is_a_plain_lora(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].init_lora_weights = True  # as peft's guide to PiSSA has it
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(1.3)
    trained = logits(adapted.eval())
    adapted.save_pretrained(
        tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )

    assert vllm_serves(base, tmp_path / "lora", trained) == "right"
    check(tmp_path / "lora")
    assert config_of(tmp_path / "lora")["r"] == 8


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target_modules": r".*\.1\.self_attn\.q_proj"}, "a pattern, not a list of names"),
        ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "target_parameters"),
    ],
)
def test_what_is_served_right_but_refused_has_a_reason(
    base: Path, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    trained = train(base, Variant(options), tmp_path / "lora")

    assert vllm_serves(base, tmp_path / "lora", trained) == "right"
    assert why in refusal(tmp_path / "lora")


# Releases to come


def test_every_option_of_peft_is_known_here() -> None:
    options = {option.name for option in dataclasses.fields(LoraConfig)}

    assert options == WITHOUT_EFFECT | READ | REFUSED.keys()
    assert len(options) == len(WITHOUT_EFFECT) + len(READ) + len(REFUSED)


def test_every_option_that_vllm_reads_is_looked_at_here() -> None:
    read = {option.name for option in dataclasses.fields(PEFTHelper)}

    assert {name for name in read if not name.startswith("vllm_")} <= READ | REFUSED.keys()


def test_defaults_of_peft_are_accepted() -> None:
    config = LoraConfig(target_modules=["q_proj"]).to_dict()

    check_config({**config, "peft_type": "LORA", "target_modules": ["q_proj"]})


@pytest.mark.parametrize("off", [None, False, [], {}])
def test_an_unknown_option_that_is_off_is_accepted(off: object) -> None:
    check_config(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q"], "tomorrow": off}
    )


def test_ranks_are_those_of_vllm() -> None:
    assert set(RANKS) == set(get_args(MaxLoRARanks)) - {1}


# Values


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("r", 1024, "512 at most"), ("r", 0, "r=0"), ("r", True, "r=True"), ("r", None, "r=None"),
        ("r", "8", "r='8'"), ("rank_pattern", {"q_proj": 1024}, "512 at most"),
        ("rank_pattern", {"q_proj": 0}, "rank_pattern"), ("rank_pattern", ["q_proj"], "name"),
        ("rank_pattern", {"(q+)+_proj": 8}, "does not name modules"),
        ("alpha_pattern", {".*_proj": 8}, "does not name modules"),
        ("alpha_pattern", {"q_proj": "8"}, "alpha_pattern"), ("lora_alpha", None, "lora_alpha"),
        ("lora_alpha", 0, "lora_alpha"), ("lora_alpha", float("nan"), "lora_alpha"),
        ("target_modules", None, "names no modules"), ("target_modules", [], "names no modules"),
        ("target_modules", [7], "names no modules"), ("target_modules", {"q": 1}, "names no"),
        ("target_modules", ".*lm_head", "never adapted"), ("bias", True, "bias=True"),
        ("init_lora_weights", "True", "changed base"),
    ],
)  # fmt: skip
def test_a_value_that_no_lora_has_is_refused_by_its_key(key: str, value: Any, words: str) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}

    with pytest.raises(IncompatibleAdapter) as caught:
        check_config({**config, key: value})
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "key", ["q_proj", "1.mlp.up_proj", r"layers\.0\.mlp", "^model.layers.0.mlp.up_proj$", "proj"]
)
def test_ranks_are_read_as_vllm_reads_them(key: str) -> None:
    config = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {key: 9}}
    helper = PEFTHelper.from_dict(config)

    for layer in (0, 1, 11):
        for part in ("self_attn.q_proj", "mlp.up_proj"):
            module = f"model.layers.{layer}.{part}"
            assert rank_of(module, config) == helper.get_rank_and_scaling(module)[0]


# Tensors


def test_half_a_pair_is_refused_and_vllm_would_fail_while_loading(
    base: Path, tmp_path: Path
) -> None:
    trained = train(base, Variant(), tmp_path / "lora")
    change_tensors(tmp_path / "lora", lambda tensors: tensors.pop(f"{Q}.lora_B.weight"))

    assert vllm_serves(base, tmp_path / "lora", trained) == "raises"
    assert "only one of lora_A and lora_B" in refusal(tmp_path / "lora")


def test_a_module_named_twice_is_refused_where_vllm_would_take_the_last(
    base: Path, tmp_path: Path
) -> None:
    def double(tensors: dict[str, Any]) -> None:
        for side in ("lora_A", "lora_B"):
            name = f"{Q}.{side}.weight"
            tensors[name.removeprefix("base_model.model.")] = tensors[name] * 2

    trained = train(base, Variant(), tmp_path / "lora")
    change_tensors(tmp_path / "lora", double)

    assert vllm_serves(base, tmp_path / "lora", trained) == "wrong"
    assert "more than one of" in refusal(tmp_path / "lora")


def test_tensors_of_a_module_that_is_not_named_are_refused(base: Path, tmp_path: Path) -> None:
    trained = train(base, Variant(edit={"target_modules": ["q_proj"]}), tmp_path / "lora")

    assert vllm_serves(base, tmp_path / "lora", trained) == "right"  # peft would leave them out
    assert "up_proj has tensors, but" in refusal(tmp_path / "lora")


def test_a_head_is_found_in_the_tensors_too(tmp_path: Path) -> None:
    from safetensors.numpy import save_file as save_numpy

    tensors = {"lm_head.lora_A.weight": np.ones((4, 8)), "lm_head.lora_B.weight": np.ones((8, 4))}
    save_numpy(tensors, tmp_path / WEIGHTS)

    with pytest.raises(IncompatibleAdapter, match="never adapted"):
        check_tensors(tmp_path / WEIGHTS, {"r": 4, "target_modules": ["lm_head"]})


# A server


def test_a_server_says_how_to_restart_it() -> None:
    takes = Takes(base=BASE, max_rank=16, target_modules=frozenset({"q_proj"}))

    assert takes.misfit(manifest(r=16)) is None
    assert takes.misfit(manifest(r=17)) == (
        "it has rank 17, the server takes 16", "max_lora_rank 32",
    )  # fmt: skip
    assert takes.misfit(manifest(r=4, rank_pattern={"q_proj": 64})) == (
        "it has rank 64, the server takes 16", "max_lora_rank 64",
    )  # fmt: skip
    assert takes.misfit(manifest(target_modules=["self_attn.q_proj", "o_proj", "k_proj"])) == (
        "it adapts k_proj, o_proj, which is off in the server",
        "k_proj, o_proj in lora_target_modules",
    )
