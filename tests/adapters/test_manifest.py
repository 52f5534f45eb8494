"""The manifest: what a draft must say, and what its digest covers."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.errors import InvalidManifest
from adapters.manifest import (
    DatasetRef,
    Draft,
    Metric,
    SweepRef,
    content_digest,
    parse_manifest,
)
from adapters.prompt import PromptTemplate, default_prompt
from adapters.registry import Registry
from tests.adapters.parcels import BASE, DIGEST, PROBE, draft, parcel, verdict

FILES = dict.fromkeys(("adapter_model.safetensors", "adapter_config.json", "probe.json"), DIGEST)
OTHER = "sha256:" + "1" * 64
SWEEP = SweepRef(digest=DIGEST, metric="chrf", trials=3, space={"lora.r": "8, 16"})


def _draft(**changes: Any) -> Draft:
    plain: dict[str, Any] = {
        "name": "x", "task": "generate", "base": BASE, "peft": {"r": 4},
        "prompt": default_prompt("generate"), "probe": PROBE.digest(),
    }  # fmt: skip
    return Draft(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"task": "answer"}, "prompt is for generate"),
        ({"task": "translate", "prompt": default_prompt("translate"), "languages": ["en"]},
         "source and its target"),
        ({"task": "classify", "prompt": default_prompt("classify"), "labels": ["a", "a"]},
         "two or more"),
        ({"name": "../x"}, "not a valid name"),
        ({"languages": ["xx"]}, "not a valid language tag"),
        ({"probe": "sha256:12"}, "pattern"),
        ({"digest": DIGEST}, "Extra inputs"),
    ],
)  # fmt: skip
def test_a_draft_that_no_server_could_use_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        _draft(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": PromptTemplate(task="generate", system="Be brief.", user="{prompt}")},
        {"labels": ["a"]},
        {"languages": ["en"]},
        {"base": BASE.model_copy(update={"weights": OTHER})},
    ],
)
def test_what_decides_answers_changes_the_digest(changes: dict[str, Any]) -> None:
    assert content_digest(_draft(**changes), FILES) != content_digest(_draft(), FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_decisive_file_changes_the_digest(name: str) -> None:
    assert content_digest(_draft(), {**FILES, name: OTHER}) != content_digest(_draft(), FILES)


def test_names_logs_and_notes_do_not_change_the_digest() -> None:
    noted = _draft(
        name="y", training={"seed": 3}, parents=["x@1"],
        base=BASE.model_copy(update={"name": "renamed"}),
        datasets=[DatasetRef(digest=DIGEST, examples=3, split="train", source="file")],
        gate=verdict(passed=False), live=f"x@{DIGEST}", sweep=SWEEP,
    )  # fmt: skip

    files = {**FILES, "report.json": OTHER}
    assert content_digest(noted, files) == content_digest(_draft(), FILES)


def test_bases_differ_by_content_and_not_by_name() -> None:
    renamed = BASE.model_copy(update={"name": "other"})
    altered = BASE.model_copy(update={"weights": OTHER, "tokenizer": OTHER})

    assert renamed.fingerprint == BASE.fingerprint
    assert BASE.differences(renamed) == []
    assert BASE.differences(altered) == ["tokenizer", "weights"]


def test_a_manifest_comes_back_from_its_file(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    version = registry.publish(folder := parcel(tmp_path / "p"), draft(folder))
    text = (version.folder / "manifest.json").read_bytes()

    manifest = parse_manifest(text, "x@1")
    assert manifest == version.manifest
    assert (manifest.version, manifest.rank, manifest.created.tzinfo is None) == (1, 4, False)
    assert manifest.size == sum((version.folder / name).stat().st_size for name in manifest.files)


def test_what_no_gate_no_live_version_and_no_sweep_said_is_not_written(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    plain = Metric(value=1, low=0, high=2, base_value=0, base_low=0, base_high=0)
    old, new = parcel(tmp_path / "old", 1), parcel(tmp_path / "new", 2)
    one = registry.publish(old, draft(old, metrics={"chrf": plain}))
    measured = plain.model_copy(update={"live_value": 3.0, "live_low": 2.0, "live_high": 4.0})
    other = registry.publish(
        new,
        draft(
            new,
            metrics={"chrf": measured},
            gate=verdict(passed=True),
            live=f"x@{one.digest}",
            sweep=SWEEP,
        ),
    )

    # manifests of releases before these look like the first one
    text = (one.folder / "manifest.json").read_text()
    assert [word for word in ('"gate"', '"live', '"sweep"') if word in text] == []
    again = registry.find("x@2").manifest
    assert again == other.manifest
    assert (again.gate, again.sweep) == (verdict(passed=True), SWEEP)
    assert (again.live, again.metrics["chrf"].live_value) == (f"x@{one.digest}", 3.0)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", '{"format": 2}'])
def test_what_is_no_manifest_is_refused_with_its_source(text: str) -> None:
    with pytest.raises(InvalidManifest, match="x@1"):
        parse_manifest(text, "x@1")
