"""Batches are parted when, and only when, they would not fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from adapters.bases import Base
from finetune.memory import Load, Parting, Place, Shape, memory_bytes, part
from finetune.quantization import quantized_bytes

SHAPE = Shape(layers=30, hidden=576, intermediate=1536, vocabulary=49152)
GIB = 2**30


def parted(memory_gib: float, batch: int = 8192, longest: int = 1024) -> Parting:
    load = Load(batch, longest)
    place = Place("cpu", "float32", int(memory_gib * GIB))
    return part(SHAPE, load, place, weights=135_000_000 * 4)


def test_a_batch_that_fits_goes_through_whole() -> None:
    assert parted(64) == Parting(None, activation_checkpointing=False)


def test_a_batch_that_does_not_fit_is_parted_and_the_parts_fit() -> None:
    found = parted(16)
    assert found.micro_batch_tokens is not None
    assert 1024 <= found.micro_batch_tokens < 8192
    assert not found.activation_checkpointing
    used = found.micro_batch_tokens * SHAPE.token_bytes("float32", "cpu", checkpointing=False)
    assert used + 135_000_000 * 4 <= 0.6 * 16 * GIB


def test_activations_are_computed_twice_when_the_longest_example_does_not_fit() -> None:
    found = parted(2.5)
    assert found.activation_checkpointing
    assert found.micro_batch_tokens is None or found.micro_batch_tokens >= 1024


def test_the_longest_example_always_goes_through() -> None:
    assert parted(0.1) == Parting(1024, activation_checkpointing=True)


def test_checkpointing_takes_less_and_half_precision_does_on_a_gpu() -> None:
    whole = SHAPE.token_bytes("float32", "cpu", checkpointing=False)
    assert SHAPE.token_bytes("float32", "cpu", checkpointing=True) < whole / 2
    assert SHAPE.token_bytes("bfloat16", "cuda", checkpointing=False) == whole / 2
    assert SHAPE.token_bytes("bfloat16", "cpu", checkpointing=False) == whole


def test_a_quantised_base_keeps_its_embedding_whole_and_computes_in_float32() -> None:
    untied = replace(SHAPE, tied=False)
    embedding = 49152 * 576
    assert quantized_bytes(135_000_000, SHAPE) == int(
        4 * embedding + 0.52 * (135_000_000 - embedding)
    )
    assert quantized_bytes(135_000_000, untied) > quantized_bytes(135_000_000, SHAPE)
    assert SHAPE.token_bytes("float32", "cuda", checkpointing=False) > SHAPE.token_bytes(
        "bfloat16", "cuda", checkpointing=False
    )


def test_the_shape_is_read_from_the_bases_config(base: Base, tmp_path: Path) -> None:
    assert Shape.of(base.path) == Shape(2, 64, 128, 512)
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 8}}')
    assert Shape.of(tmp_path) is None


@pytest.mark.parametrize(("text", "expected"), [("1048576\n", 2**20), ("max\n", None)])
def test_a_containers_limit_counts(text: str, expected: int | None, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    found = memory_bytes("cpu", limit)
    assert found == expected if expected else found > 2**28
