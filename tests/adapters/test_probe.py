"""The proof: what passes and what does not."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from adapters.errors import InvalidManifest
from adapters.probe import Probe, ProbeItem, judge, tolerance
from tests.adapters.parcels import PROBE

HONEST = [[-1.001, -1.999]]


def test_figures_within_the_tolerance_are_a_proof() -> None:
    proof = judge(PROBE, HONEST, "float32")

    assert proof.proved
    assert proof.error == pytest.approx(0.001)
    assert proof.effect == pytest.approx(2.0)


@pytest.mark.parametrize(
    "measured", [[[-3.0, -4.0]], [[-1.1, -2.1]], [[math.nan, -2.0]], [[-math.inf, -2.0]]]
)
def test_the_bases_figures_or_other_weights_are_none(measured: list[list[float]]) -> None:
    proof = judge(PROBE, measured, "float32")

    assert not proof.proved
    assert proof.reason


def test_the_reason_tells_when_the_engine_answers_as_the_base() -> None:
    assert "base" in judge(PROBE, [[-3.0, -4.0]], "float32").reason


def test_an_adapter_without_effect_is_never_proved() -> None:
    item = PROBE.items[0].model_copy(update={"base_logprobs": [-1.0, -2.0]})

    assert not judge(Probe(dtype="float32", items=[item]), [[-1.0, -2.0]], "float32").proved


def test_the_coarser_dtype_decides() -> None:
    assert tolerance("float32", "bfloat16") == tolerance("bfloat16")
    assert tolerance("float32") < tolerance("float16") < tolerance("bfloat16")
    assert tolerance("float8") == tolerance("bfloat16")


def test_a_probe_comes_back_from_its_file(tmp_path: Path) -> None:
    PROBE.save(tmp_path / "probe.json")

    assert Probe.load(tmp_path / "probe.json").digest() == PROBE.digest()
    (tmp_path / "probe.json").write_text('{"dtype": "float32", "items": []}')
    with pytest.raises(InvalidManifest):
        Probe.load(tmp_path / "probe.json")


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValidationError):
        ProbeItem(prompt_ids=[1], token_ids=[1], adapter_logprobs=[], base_logprobs=[-1.0])
    with pytest.raises(ValidationError):
        ProbeItem(
            prompt_ids=[1], token_ids=[1, 1], adapter_logprobs=[-1, -1], base_logprobs=[-1, -1]
        )
