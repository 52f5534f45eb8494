"""An adapter written into its base's weights: what the checkpoint holds, and when none is left."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapters.bases import Base, fingerprint
from adapters.digests import digest_file
from adapters.errors import StoreFailed
from adapters.probe import Probe, judge
from adapters.registry import Registry
from finetune import bake as command_line
from finetune.base_model import load_model
from finetune.publish import measure
from tests.made import Recipe, adapter_folder, publish


@pytest.fixture
def registry(home: Path, base: Base) -> Registry:
    registry = Registry.open(home)
    publish(registry, base, Recipe("a", 1))
    return registry


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "baked"


@pytest.fixture
def command(registry: Registry, target: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process; its exit code, JSON answer and messages."""

    def call(reference: str = "a@1", *options: str) -> tuple[int, Any, str]:
        home = str(registry.home.root)
        code = command_line.main([reference, str(target), "--home", home, "--json", *options])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


@pytest.fixture
def refused(command: Any, target: Path) -> Callable[..., dict[str, str]]:
    """Bake, which must be refused as bad input and leave nothing."""

    def call(*options: str) -> dict[str, str]:
        before = sorted(target.parent.rglob("*"))
        code, answer, told = command(*options)
        assert code == 2, told
        assert sorted(target.parent.rglob("*")) == before
        return dict(answer["error"])

    return call


def half_base(registry: Registry, base: Base, dtype: str) -> Base:
    """The tiny base in a coarser dtype, as `modiste base add` would record it."""
    folder = registry.home.bases / dtype
    shutil.copytree(base.path, folder)
    tensors = load_file(folder / "model.safetensors")
    coarse = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    save_file(coarse, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    made = base.model_copy(
        update={"name": dtype, "path": folder, "ref": fingerprint(folder, dtype, dtype)}
    )
    registry.add_base(made)
    return made


def test_the_checkpoint_answers_as_the_adapter_does_and_is_the_base_in_all_else(
    command: Any, target: Path, registry: Registry, base: Base
) -> None:
    code, answer, told = command()

    assert code == 0, told
    version = registry.find("a@1")
    assert (answer["version"], answer["digest"]) == ("a@1", version.digest)
    assert (answer["target"], answer["base"]) == (str(target), None)
    probe = Probe.load(version.folder / "probe.json")
    proof = judge(probe, measure(load_model(target, "float32", "cpu"), probe), "float32")
    assert proof.proved
    assert proof.error == answer["error_nats"] < 1e-3
    adapted = PeftModel.from_pretrained(load_model(base.path, "float32", "cpu"), version.folder)
    want = adapted.merge_and_unload().state_dict()
    got, before = (load_file(f / "model.safetensors") for f in (target, base.path))
    assert got.keys() == before.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, want[name])
    changed = {name for name in got if not torch.equal(got[name], before[name])}
    assert changed == {name for name in got if "_proj" in name}
    kept = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "generation_config.json")  # fmt: skip
    for name in kept:
        assert digest_file(target / name) == digest_file(base.path / name), name


def test_it_says_what_it_was_made_from(
    command: Any, target: Path, registry: Registry, base: Base
) -> None:
    command()

    digest = registry.find("a@1").digest
    about = json.loads((target / "modiste.json").read_text())
    assert (about["version"], about["digest"]) == ("a@1", digest)
    assert about["base"] == base.ref.model_dump(mode="json")
    assert about["prompt"]["task"] == about["task"] == "generate"
    assert about["probe"]["error_nats"] <= about["probe"]["tolerance_nats"] == 0.02
    card = (target / "README.md").read_text()
    assert digest in card
    assert str(registry.home.root) not in card + json.dumps(about)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checkpoint_is_asked_in_the_dtype_of_the_probe(
    registry: Registry, base: Base, target: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this machine would choose: else what is compared is the rounding."""
    publish(registry, base, Recipe("probed", 3))
    version = registry.find("probed@1")
    probe = Probe.load(version.folder / "probe.json")
    monkeypatch.setattr(Probe, "load", lambda _: probe.model_copy(update={"dtype": dtype}))
    asked: list[str] = []

    def load(folder: Path, wanted: str, device: str) -> Any:
        asked.append(wanted)
        return load_model(folder, wanted, device)

    monkeypatch.setattr("finetune.base_model.load_model", load)
    command_line.bake(registry, "probed@1", target, None, lambda _: None)
    assert asked == ["float32", dtype]  # the first is for the sums


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_coarse_base_stays_coarse_and_each_weight_is_rounded_once(
    command: Any, target: Path, registry: Registry, base: Base, dtype: str
) -> None:
    half = half_base(registry, base, dtype)
    publish(registry, half, Recipe("half", 2, scale=0.05))
    code, answer, told = command("half@1")

    assert code == 0, told
    assert answer["error_nats"] > 1e-4  # rounding shows
    version = registry.find("half@1")
    exact = PeftModel.from_pretrained(load_model(half.path, "float32", "cpu"), version.folder)
    want = exact.merge_and_unload().state_dict()
    for name, tensor in load_file(target / "model.safetensors").items():
        assert tensor.dtype == getattr(torch, dtype)
        nearest = want[name].to(tensor.dtype)
        off = (tensor != nearest) & (
            (tensor - want[name]).abs() > (nearest - want[name]).abs() * 1.001
        )
        assert not off.any(), name
    assert json.loads((target / "config.json").read_text())["dtype"] == dtype
    assert f"rounded once to {dtype}" in (target / "README.md").read_text()


def test_an_adapter_that_rounding_loses_is_refused(
    refused: Any, registry: Registry, base: Base
) -> None:
    half = half_base(registry, base, "bfloat16")
    publish(registry, half, Recipe("weak", 3, scale=1e-6))

    error = refused("weak@1")
    assert (error["code"], "has no effect" in error["message"]) == ("proof_failed", True)
    assert "base in float32" in error["hint"]


def test_a_checkpoint_that_does_not_answer_the_probe_is_not_kept(
    refused: Any, registry: Registry, base: Base, target: Path
) -> None:
    folder = registry.home.root / "made" / "liar"
    draft = adapter_folder(base, Recipe("liar", 4), folder)
    probe = Probe.load(folder / "probe.json")
    items = [
        item.model_copy(update={"adapter_logprobs": [v - 1 for v in item.adapter_logprobs]})
        for item in probe.items
    ]
    spoiled = probe.model_copy(update={"items": items})
    spoiled.save(folder / "probe.json")
    registry.publish(folder, draft.model_copy(update={"probe": spoiled.digest()}))

    assert refused("liar@1")["code"] == "proof_failed"
    target.mkdir()
    assert refused("liar@1")["code"] == "proof_failed"  # an empty target stays empty


def test_the_result_can_become_a_base(
    command: Any, target: Path, registry: Registry, base: Base
) -> None:
    code, answer, told = command("a@1", "--add-base", "baked")

    assert code == 0, told
    assert answer["base"] == "baked"
    baked = registry.base("baked")
    assert baked.path == registry.home.bases / "baked"
    assert baked.source == f"baked from a@1 {registry.find('a@1').digest}"
    assert baked.ref.differences(base.ref)[-1] == "weights"
    assert baked.lora
    assert registry.base() == base  # the default stays
    weights = [digest_file(folder / "model.safetensors") for folder in (target, baked.path)]
    assert weights[0] == weights[1]
    version = publish(registry, baked, Recipe("on-top", 5))
    assert version.manifest.base == baked.ref
    shutil.rmtree(target)
    assert command("a@1", "--add-base", "baked")[0] == 0  # the same content again


def test_a_name_that_is_taken_is_told_before_the_work(refused: Any, registry: Registry) -> None:
    assert refused("a@1", "--add-base", "tiny")["code"] == "invalid_name"
    assert refused("a@1", "--add-base", "A/B")["param"] == "add_base"
    assert [base.name for base in registry.bases()] == ["tiny"]


@pytest.mark.parametrize("kind", ["file", "full", "link", "orphan"])
def test_a_target_that_is_not_new_or_empty_is_refused(
    refused: Any, target: Path, kind: str
) -> None:
    match kind:
        case "file":
            target.write_text("x")
        case "full":
            target.mkdir()
            (target / "x").write_text("x")
        case "link":
            target.symlink_to(target.parent)
        case "orphan":
            target.parent.rmdir()

    error = refused()
    assert (error["code"], error["param"]) == ("invalid_value", "target")
    assert error["hint"]


def test_an_empty_folder_is_filled(command: Any, target: Path) -> None:
    target.mkdir()

    assert command()[0] == 0
    assert (target / "modiste.json").is_file()
    assert [path.name for path in target.parent.iterdir()] == ["baked"]


def test_a_quantised_base_is_refused(refused: Any, registry: Registry, base: Base) -> None:
    half = half_base(registry, base, "float16")
    publish(registry, half, Recipe("q", 6))
    config = json.loads((half.path / "config.json").read_text())
    path = half.path / "config.json"
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))

    assert "quantised" in refused("q@1")["message"]


def test_a_version_that_is_not_whole_is_refused(refused: Any, registry: Registry) -> None:
    assert refused("b@1")["code"] == "adapter_not_found"
    path = registry.find("a@1").folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert refused("a@1")["code"] == "digest_mismatch"


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (StoreFailed("full"), 1), (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ],
)  # fmt: skip
def test_baking_that_is_cut_off_leaves_nothing(
    command: Any, target: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException, code: int
) -> None:
    def end(*_: object) -> None:
        raise ends

    monkeypatch.setattr("finetune.publish.measure", end)

    assert command()[0] == code
    assert list(target.parent.iterdir()) == []


def test_without_json_the_digest_and_the_target_are_shown(
    registry: Registry, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(registry.home.root)]
    assert command_line.main(["a@1", str(target), *home, "--add-base", "b"]) == 0
    shown = capsys.readouterr()

    assert shown.out == f"a@1 {registry.find('a@1').digest} -> {target}, base b\n"
    assert "bake:" in shown.err
    assert command_line.main(["a@1", str(target), *home]) == 2
    assert "hint: empty it" in capsys.readouterr().err
