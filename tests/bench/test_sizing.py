"""The arithmetic of one server agrees with what is published, with vLLM and with our planning."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.bases import Base
from adapters.manifest import BaseRef
from bench.sizing import (
    ALL_MODULES,
    ATTENTION,
    GPU_BYTES,
    GPU_SHARE,
    LLAMA_8B,
    LLAMA_70B,
    MODELS,
    MOST_SEQUENCES,
    RANK,
    TOKEN_GAP_S,
    Model,
    Server,
    planned_slots,
)
from service.capacity import adapter_bytes, plan
from service.settings import Settings

SERVERS = [Server(model, 64) for model in MODELS]


def base_of(model: Model, folder: Path) -> Base:
    """A base with the model's config.json, and nothing else of it."""
    config = {
        "hidden_size": model.hidden, "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads, "intermediate_size": model.inner,
        "num_hidden_layers": model.layers,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    ref = BaseRef.model_construct(name=model.name, dtype="bfloat16")
    return Base.model_construct(name=model.name, path=folder, ref=ref)


@pytest.mark.parametrize(("model", "billions"), [(LLAMA_8B, 8.03), (LLAMA_70B, 70.55)])
def test_models_have_as_many_parameters_as_published(model: Model, billions: float) -> None:
    assert round(model.parameters / 1e9, 2) == billions


@pytest.mark.parametrize("modules", [ATTENTION, ALL_MODULES])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_an_adapter_is_as_large_as_the_server_plans_for(
    model: Model, modules: tuple[str, ...], tmp_path: Path
) -> None:
    planned = adapter_bytes(base_of(model, tmp_path), 16, modules, "auto")

    assert model.adapter_bytes(16, modules) == planned


@pytest.mark.parametrize("live", [0, 10, 30, 1000])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_slots_are_those_that_the_server_plans(model: Model, live: int, tmp_path: Path) -> None:
    registry: Any = SimpleNamespace(
        all_aliases=lambda: {(f"x{n}", "production"): 1 for n in range(live)}, canaries=dict
    )
    settings = Settings(max_lora_rank=int(RANK.value))
    base = base_of(model, tmp_path)

    slots = plan(settings, registry, base, int(GPU_BYTES.value)).slots

    assert planned_slots(model, live) == slots


def test_slots_of_all_gpus_hold_an_adapter_and_what_they_repeat_of_it() -> None:
    assert LLAMA_8B.slot_bytes(16) == LLAMA_8B.adapter_bytes(16)
    together = LLAMA_70B.slot_bytes(16) * LLAMA_70B.gpus
    assert LLAMA_70B.adapter_bytes(16) < together < LLAMA_70B.gpus * LLAMA_70B.adapter_bytes(16)


def test_the_engines_figures_are_those_of_the_vllm_that_is_installed() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0])
    cache = (source / "config" / "cache.py").read_text()
    arguments = (source / "engine" / "arg_utils.py").read_text()
    h100 = arguments.split('"a100" not in device_name')[1].split("else:")[0]

    assert f"gpu_memory_utilization: float = Field(default={GPU_SHARE.value}," in cache
    seqs = re.findall(r"OPENAI_API_SERVER: (\d+)", h100)
    assert int(seqs[-1]) == MOST_SEQUENCES.value


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.model.name)
def test_weights_slots_and_cache_fill_the_gpus_and_no_more(server: Server) -> None:
    model = server.model
    taken = (
        model.parameters * 2
        + model.gpus * server.slots * model.slot_bytes(16)
        + server.cache_tokens * model.cache_bytes
    )
    there = model.gpus * GPU_BYTES.value * GPU_SHARE.value

    assert 0.9 * there < taken < there


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.model.name)
def test_the_highest_rate_keeps_the_time_between_tokens(server: Server) -> None:
    assert server.step_s(server.most_running) == pytest.approx(TOKEN_GAP_S.value, rel=1e-6)
    assert server.most_running < server.sequences


@given(st.sampled_from(SERVERS), st.floats(0.01, 0.99))
def test_so_many_run_that_they_make_the_rate(server: Server, part: float) -> None:
    rate = part * server.rate(server.most_running)

    assert server.rate(server.running(rate)) == pytest.approx(rate, rel=1e-9)


def test_places_are_what_each_gpus_process_has_memory_for() -> None:
    server = Server(LLAMA_70B, 64)
    kept = server.places * LLAMA_70B.adapter_bytes(16) * LLAMA_70B.gpus

    assert 0.49 * 4 * 250e9 < kept <= 0.5 * 4 * 250e9
