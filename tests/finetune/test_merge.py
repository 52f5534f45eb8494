"""Several adapters made into one version: what is published, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapters.bases import Base
from adapters.errors import AdapterError, StoreFailed
from adapters.probe import Probe, judge
from adapters.registry import Registry, Version
from finetune import merge as command_line
from finetune.base_model import load_model
from finetune.lora import base_of
from finetune.publish import measure
from tests.finetune.merging import WEIGHTS, changes, distance, of, summed, with_parents
from tests.made import Recipe, adapter_folder, publish


@pytest.fixture
def registry(home: Path, base: Base) -> Registry:
    return with_parents(home, base)


@pytest.fixture
def command(registry: Registry, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process; its exit code, JSON answer and messages."""

    def call(*options: str) -> tuple[int, Any, str]:
        code = command_line.main([*options, "--home", str(registry.home.root), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


@pytest.fixture
def merged(command: Any, registry: Registry) -> Callable[..., Version]:
    def call(*options: str) -> Version:
        code, answer, told = command(*options, "--into", "m")
        assert code == 0, told
        version = registry.find(answer["version"])
        assert answer["digest"] == version.digest
        return version

    return call


@pytest.fixture
def refused(command: Any, registry: Registry) -> Callable[..., dict[str, str]]:
    """Merge into `m`, which must be refused as bad input and leave nothing."""

    def call(*options: str) -> dict[str, str]:
        code, answer, told = command(*options, "--into", "m")
        assert code == 2, told
        assert "m" not in {record.name for record in registry.adapters()}
        assert list(registry.store.staging.glob("*")) == []
        return dict(answer["error"])

    return call


# What is published


def test_a_merged_version_knows_its_parents_and_is_proved_from_its_files(
    merged: Any, registry: Registry, base: Base
) -> None:
    options = ("--method", "dare_ties_svd", "--seed", "3", "--weights=1,0.5", "--rank", "6")
    version = merged("a@1", "b@1", *options)

    manifest = version.manifest
    parents = [registry.find(f"{name}@1") for name in "ab"]
    assert manifest.parents == [f"{parent.name}@{parent.digest}" for parent in parents]
    assert [registry.find(parent) for parent in manifest.parents] == parents
    about = manifest.training["merge"]
    assert about["parents"] == [
        {"version": "a@1", "digest": parents[0].digest, "weight": 1.0},
        {"version": "b@1", "digest": parents[1].digest, "weight": 0.5},
    ]
    asked = {key: about[key] for key in ("method", "density", "seed", "rank")}
    assert asked == {"method": "dare_ties_svd", "density": 0.5, "seed": 3, "rank": 6}
    assert manifest.training["packages"]["peft"]
    assert (manifest.base, manifest.task, manifest.rank) == (base.ref, "generate", 6)
    probe = Probe.load(version.folder / "probe.json")
    model = PeftModel.from_pretrained(load_model(base.path, "float32", "cpu"), version.folder)
    assert judge(probe, measure(model.eval(), probe), "float32").proved
    asked_of = [
        item.prompt_ids for p in parents for item in Probe.load(p.folder / "probe.json").items
    ]
    assert all(item.prompt_ids in asked_of for item in probe.items)


def test_the_digest_does_not_depend_on_the_process(merged: Any, registry: Registry) -> None:
    options = ["b@1", "a@1", "--method", "dare_ties_svd", "--seed", "5", "--into", "m"]
    digest = merged(*options[:-2]).digest
    done = subprocess.run(
        [sys.executable, "-m", "finetune.merge", *options, "--home", str(registry.home.root)],
        env={**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"m@1 {digest}\n"
    assert "merge:" in done.stderr


def test_a_merge_of_merges_works(merged: Any, registry: Registry) -> None:
    first = merged("a@1", "b@1")
    second = merged(first.reference, "c@1", "--weights", "1,1")

    parts = [(0.5, c) for c in of(registry, "a", "b")] + [(1.0, c) for c in of(registry, "c")]
    assert distance(changes(second), summed(parts)) < 1e-5
    assert second.manifest.rank == 20


def test_an_approximation_says_how_far_off_it_is(command: Any, registry: Registry) -> None:
    _, answer, told = command("a@1", "b@1", "--method", "linear", "--into", "m")
    off = registry.find(answer["version"]).manifest.training["merge"]["off_sum"]
    assert f"{off:.0%} off the weighted sum" in told

    _, _, told = command("a@1", "b@1", "--into", "m")
    assert "off the weighted sum" not in told
    assert "its rank is 16: max_lora_rank" in told


# What is refused


def test_parents_that_cancel_out_are_refused(refused: Any, registry: Registry, base: Base) -> None:
    folder = registry.home.root / "made" / "a-1"
    draft = adapter_folder(base, Recipe("twin", 1), folder)
    peft = {**draft.peft, "lora_alpha": draft.peft["lora_alpha"] * 2}
    tensors = load_file(folder / WEIGHTS)
    halved = {name: t * 0.5 if "lora_B" in name else t for name, t in tensors.items()}
    save_file(halved, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(peft))
    registry.publish(folder, draft.model_copy(update={"peft": peft}))  # the same change as a's

    for method in ("cat", "svd"):
        error = refused("a@1", "twin@1", "--weights=1,-1", "--method", method)
        assert (error["code"], error["param"]) == ("incompatible_adapter", "weights")
        assert "no effect" in error["message"]


def test_a_merge_that_is_pruned_to_nothing_is_refused(refused: Any) -> None:
    error = refused("a@1", "b@1", "--method", "magnitude_prune", "--density", "0.000001")

    assert "no effect" in error["message"]
    assert "--density" in error["hint"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["a@1"], "two versions or more"),
        (["a@1", "a@1"], "each once"),
        (["a@1", "b@1", "--weights", "1"], "2 numbers"),
        (["a@1", "b@1", "--weights", "1,0"], "other than 0"),
        (["a@1", "b@1", "--weights", "1,nan"], "2 numbers"),
        (["a@1", "b@1", "--weights", "1,x"], "2 numbers"),
        (["a@1", "b@1", "--density", "0.5"], "--density means nothing for cat"),
        (["a@1", "b@1", "--seed", "1"], "--seed means nothing for cat"),
        (["a@1", "b@1", "--rank", "4"], "--rank means nothing for cat"),
        (["a@1", "b@1", "--method", "ties", "--seed", "1"], "--seed means nothing for ties"),
        (["a@1", "b@1", "--method", "ties", "--density", "0"], "over 0"),
        (["a@1", "b@1", "--method", "ties", "--density", "1.5"], "at most 1"),
        (["a@1", "b@1", "--method", "dare_ties", "--seed", "-1"], "0 or more"),
        (["a@1", "b@1", "--method", "svd", "--rank", "0"], "1 or more"),
        (["a@1", "b@1", "--method", "svd", "--rank", "33"], "narrowest layer has (32)"),
        (["a@1", "c@1", "--method", "linear"], "a@1 has rank 8, c@1 has rank 4"),
        (["a@1", "c@1", "--method", "dare_ties"], "needs parents of one rank"),
        (["a@1", "nobody@1"], "nobody"),
        (["a@1", "b@1", "--prompt-from", "c@1"], "not one of the parents"),
    ],
)
def test_options_that_do_not_fit_are_told(refused: Any, options: list[str], words: str) -> None:
    error = refused(*options)

    assert words in error["message"]
    assert error["hint"] or error["param"]


def test_a_rank_that_the_engine_does_not_take_is_refused(
    refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.combine.MOST_RANK", 15)

    error = refused("a@1", "b@1")
    assert error["message"].endswith("rank 16, and vLLM takes 15 at most")
    assert "--method svd" in error["hint"]


def test_parents_of_several_tasks_or_bases_are_refused(
    refused: Any, registry: Registry, base: Base
) -> None:
    publish(registry, base, Recipe("sorts", 4, task="classify", labels=["x", "y"]))
    folder = registry.home.root / "made" / "far"
    draft = adapter_folder(base, Recipe("far", 5), folder)
    other = base.ref.model_copy(update={"weights": "sha256:" + "1" * 64})
    for name in ("far", "farther"):
        update = {"name": name, "base": other}
        registry.publish(folder, draft.model_copy(update=update))

    assert "for generate and classify" in refused("a@1", "sorts@1")["message"]
    error = refused("a@1", "far@1")
    assert (error["code"], "differ in weights" in error["message"]) == (
        "incompatible_adapter",
        True,
    )
    with pytest.raises(AdapterError, match="which is not here"):
        base_of(registry, registry.find("far@1"))


def test_parents_that_say_other_things_need_a_word_about_whose_counts(
    refused: Any, command: Any, registry: Registry, base: Base
) -> None:
    recipes = {"fr": ["en", "fr"], "de": ["en", "de"]}
    for seed, (name, pair) in enumerate(recipes.items()):
        publish(registry, base, Recipe(name, seed, task="translate", languages=pair))

    error = refused("fr@1", "de@1")
    assert "fr@1 and de@1 differ in languages" in error["message"]
    assert "--prompt-from fr@1" in error["hint"]
    code, answer, told = command("fr@1", "de@1", "--prompt-from", "de@1", "--into", "m")
    assert code == 0, told
    manifest = registry.find(answer["version"]).manifest
    assert manifest.languages == ["en", "de"]
    assert manifest.training["merge"]["prompt_from"] == "de@1"


def test_a_parent_that_is_not_whole_is_refused(refused: Any, registry: Registry) -> None:
    registry.quarantine(registry.find("c@1"), "differs by 3 nats")
    assert refused("a@1", "c@1")["code"] == "quarantined"
    path = registry.find("b@1").folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert refused("a@1", "b@1")["code"] == "digest_mismatch"


@pytest.mark.parametrize(
    ("ends", "code"), [(StoreFailed("full", hint="free it"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_merge_that_is_cut_off_leaves_nothing(
    command: Any,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    ends: BaseException,
    code: int,
) -> None:
    def end(*_: object) -> None:
        raise ends

    monkeypatch.setattr("finetune.publish.record_probe", end)

    assert command("a@1", "b@1", "--into", "m")[0] == code
    assert list(registry.store.staging.glob("*")) == []
    assert len(registry.adapters()) == 3
