"""The dtype of a run follows from what was measured, and stays what it was."""

import json
from pathlib import Path

import pytest

from adapters.bases import Base
from finetune.memory import Shape
from finetune.precision import layer_seconds, training_dtype


def test_bfloat16_is_chosen_where_it_is_clearly_faster_and_once_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"dtype": "bfloat16", "hidden_size": 64, "num_hidden_layers": 2})
    )
    seconds = {"float32": 1.0, "bfloat16": 0.9}
    monkeypatch.setattr("finetune.precision.layer_seconds", lambda *_: seconds)
    assert training_dtype("auto", "cpu", tmp_path) == "float32"
    assert training_dtype("bfloat16", "cpu", tmp_path) == "bfloat16"
    record = tmp_path / "precision.json"
    seconds["bfloat16"] = 0.5
    assert training_dtype("auto", "cpu", tmp_path, record) == "bfloat16"
    seconds["bfloat16"] = 2.0
    assert training_dtype("auto", "cpu", tmp_path) == "float32"
    assert training_dtype("auto", "cpu", tmp_path, record) == "bfloat16"
    assert json.loads(record.read_text())["layer_s"] == {"float32": 1.0, "bfloat16": 0.5}


def test_a_layer_is_really_timed_in_both() -> None:
    small = layer_seconds(Shape(layers=2, hidden=64, intermediate=128, vocabulary=512), "cpu", 1024)
    large = layer_seconds(
        Shape(layers=2, hidden=512, intermediate=1024, vocabulary=512), "cpu", 1024
    )
    assert small.keys() == large.keys() == {"float32", "bfloat16"}
    assert all(large[name] > small[name] > 0 for name in small)


def test_a_base_that_is_stored_in_float32_is_not_rounded_for_speed(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"float32": 1.0, "bfloat16": 0.1}
    monkeypatch.setattr("finetune.precision.layer_seconds", lambda *_: seconds)
    assert training_dtype("auto", "cpu", base.path) == "float32"
    assert training_dtype("auto", "cuda", base.path) == "bfloat16"
