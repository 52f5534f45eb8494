"""Several adapters made into one: the arithmetic, what is refused, and what is published."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.bases import Base
from adapters.errors import AdapterError, StoreFailed
from adapters.probe import Probe, judge
from adapters.registry import Registry, Version
from finetune import merge as command_line
from finetune.base_model import load_model
from finetune.lora import Lora, base_of, size_of_change
from finetune.publish import measure
from tests.made import Recipe, adapter_folder, publish

WEIGHTS = "adapter_model.safetensors"
Changes = dict[str, Tensor]
"""By layer [out, in], in float64."""


@pytest.fixture
def registry(home: Path, base: Base) -> Registry:
    """`a` and `b` of rank 8, and `c` of rank 4."""
    registry = Registry.open(home)
    for recipe in (Recipe("a", 1), Recipe("b", 2), Recipe("c", 3, rank=4)):
        publish(registry, base, recipe)
    return registry


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


def changes(version: Version) -> Changes:
    """What a version adds to its base's weights, worked out from its files alone."""
    config = version.manifest.peft
    tensors = load_file(version.folder / WEIGHTS)
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
    return {
        name.removesuffix(".lora_A.weight"): scale
        * tensors[name.replace("lora_A", "lora_B")].double()
        @ tensor.double()
        for name, tensor in tensors.items()
        if "lora_A" in name
    }


def summed(parts: list[tuple[float, Changes]]) -> Changes:
    layers = {layer for _, change in parts for layer in change}
    return {
        layer: torch.stack([w * change[layer] for w, change in parts if layer in change]).sum(0)
        for layer in layers
    }


def distance(one: Changes, other: Changes) -> float:
    """In sizes of the second."""
    assert one.keys() == other.keys()
    apart = sum(float((one[layer] - other[layer]).pow(2).sum()) for layer in other)
    return float((apart / sum(float(c.pow(2).sum()) for c in other.values())) ** 0.5)


def of(registry: Registry, *names: str) -> list[Changes]:
    return [changes(registry.find(f"{name}@1")) for name in names]


# The arithmetic


@pytest.mark.parametrize("weights", [None, "0.3,0.9", "1,-0.5"])
@pytest.mark.parametrize("method", [["cat"], ["svd", "--rank", "12"]])
def test_cat_and_svd_of_enough_rank_are_exactly_the_weighted_sum(
    merged: Any, registry: Registry, method: list[str], weights: str | None
) -> None:
    options = [f"--weights={weights}"] if weights else []
    version = merged("a@1", "c@1", "--method", *method, *options)

    numbers = [float(w) for w in (weights or "0.5,0.5").split(",")]
    parts = list(zip(numbers, of(registry, "a", "c"), strict=True))
    assert version.manifest.rank == 12
    assert distance(changes(version), summed(parts)) < 1e-5


def test_cat_is_the_default(merged: Any) -> None:
    assert merged("a@1", "b@1").digest == merged("a@1", "b@1", "--method", "cat").digest


def test_svd_of_a_lower_rank_is_the_nearest_one(merged: Any, registry: Registry) -> None:
    version = merged("a@1", "b@1", "--method", "svd", "--rank", "3")

    whole, cut = summed([(0.5, c) for c in of(registry, "a", "b")]), changes(version)
    for layer, matrix in whole.items():
        best = torch.linalg.svdvals(matrix)[3:].pow(2).sum().sqrt()  # Eckart and Young
        assert float((cut[layer] - matrix).norm()) == pytest.approx(float(best), rel=1e-4)


def test_linear_is_not_the_sum_and_says_how_far_off(
    merged: Any, command: Any, registry: Registry
) -> None:
    code, answer, told = command("a@1", "b@1", "--method", "linear", "--into", "m")

    assert code == 0, told
    version = registry.find(answer["version"])
    off = distance(changes(version), summed([(0.5, c) for c in of(registry, "a", "b")]))
    assert off > 0.5
    assert f"{off:.0%} off the weighted sum" in told
    assert version.manifest.training["merge"]["off_sum"] == pytest.approx(off, rel=0.05)
    assert merged("a@1", "b@1").manifest.training["merge"]["off_sum"] < 1e-4
    tensors = [load_file(registry.find(f"{n}@1").folder / WEIGHTS) for n in "ab"]
    for name, tensor in load_file(version.folder / WEIGHTS).items():  # A and B summed apart
        torch.testing.assert_close(tensor, sum(t[name] for t in tensors))  # √(0.5 · scale 2) = 1


def ties(tasks: list[Tensor], weights: list[float]) -> Tensor:
    """Sign election by total mass, then the mean of those that agree (Yadav et al. 2023)."""
    out = torch.zeros_like(tasks[0])
    flat = [task.flatten() for task in tasks]
    for place in range(out.numel()):
        values = [float(task[place]) for task in flat]
        elected = 1.0 if sum(values) >= 0 else -1.0
        agreeing = [w * v for w, v in zip(weights, values, strict=True) if v * elected > 0]
        out.view(-1)[place] = sum(agreeing) / max(len(agreeing), 1)
    return out


def trimmed(task: Tensor, density: float) -> Tensor:
    kept = int(density * task.numel())
    threshold = task.abs().flatten().sort(descending=True).values[kept - 1]
    return torch.where(task.abs() >= threshold, task, torch.zeros_like(task))


def test_ties_on_the_changes_is_what_the_paper_says(merged: Any, registry: Registry) -> None:
    version = merged("a@1", "b@1", "--method", "ties_svd", "--density", "0.3", "--rank", "32")

    got = changes(version)
    layer = next(name for name in got if name.endswith("layers.1.self_attn.k_proj"))
    parents = [parent[layer] for parent in of(registry, "a", "b")]
    want = ties([trimmed(parent, 0.3) for parent in parents], [1.0, 1.0])
    torch.testing.assert_close(got[layer], want, rtol=1e-4, atol=1e-5)


def test_ties_without_svd_works_on_a_and_b_apart(merged: Any, registry: Registry) -> None:
    version = merged("a@1", "b@1", "--method", "ties", "--density", "0.3", "--weights", "2,1")

    tensors = [load_file(registry.find(f"{name}@1").folder / WEIGHTS) for name in "ab"]
    got = load_file(version.folder / WEIGHTS)
    roots = [(2.0 * 2.0) ** 0.5, (1.0 * 2.0) ** 0.5]  # of weight times scale
    for name in [name for name in got if "layers.0.self_attn.v_proj" in name]:
        want = ties([trimmed(t[name], 0.3) for t in tensors], roots)
        torch.testing.assert_close(got[name], want)


def test_magnitude_pruning_keeps_the_largest(merged: Any, registry: Registry) -> None:
    options = ("--method", "magnitude_prune_svd", "--density", "0.4", "--rank", "32")
    got = changes(merged("a@1", "b@1", *options))

    layer = next(name for name in got if name.endswith("layers.0.self_attn.k_proj"))
    want = sum(0.5 * trimmed(parent[layer], 0.4) for parent in of(registry, "a", "b"))
    torch.testing.assert_close(got[layer], want, rtol=1e-4, atol=1e-5)


def test_dare_drops_a_random_share_and_scales_the_rest_up(merged: Any, registry: Registry) -> None:
    options = ("--method", "dare_linear", "--density", "0.25", "--weights=1,-0.5")
    version = merged("a@1", "b@1", *options)

    one, two = (load_file(registry.find(f"{name}@1").folder / WEIGHTS) for name in "ab")
    kept: list[float] = []
    for name, tensor in load_file(version.folder / WEIGHTS).items():
        first = 4 * 2**0.5 * one[name]  # dropped or divided by the density
        second = 4 * (-1 if "lora_A" in name else 1) * two[name]  # √(0.5 · 2) = 1
        choices = torch.stack([0 * first, first, second, first + second])
        nearest = (choices - tensor).abs().min(0)
        torch.testing.assert_close(nearest.values, torch.zeros_like(tensor), rtol=0, atol=1e-5)
        kept.append(float((nearest.indices & 1).float().mean()))
    assert sum(kept) / len(kept) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_the_seed_decides_what_dare_drops(merged: Any, method: str) -> None:
    one, again, other = (
        merged("a@1", "b@1", "--method", method, "--seed", seed).digest for seed in ("7", "7", "8")
    )

    assert one == again != other


def test_dare_of_everything_is_the_plain_method(merged: Any) -> None:
    dense, plain = (
        load_file(merged("a@1", "b@1", *options).folder / WEIGHTS)
        for options in (("--method", "dare_linear", "--density", "1"), ("--method", "linear"))
    )

    assert all(torch.equal(dense[name], plain[name]) for name in plain)


def test_scales_ranks_and_layers_of_parents_may_differ(
    merged: Any, registry: Registry, base: Base
) -> None:
    folder = registry.home.root / "made" / "odd"
    draft = adapter_folder(base, Recipe("odd", 9, rank=4), folder)
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {name: t for name, t in tensors.items() if "layers.0" in name}, folder / WEIGHTS,
        metadata={"format": "pt"},
    )  # fmt: skip
    peft = {**draft.peft, "use_rslora": True, "lora_alpha": 3}
    (folder / "adapter_config.json").write_text(json.dumps(peft))
    registry.publish(folder, draft.model_copy(update={"peft": peft}))
    for pair in (("odd@1", "a@1"), ("a@1", "odd@1")):
        version = merged(*pair, "--weights=2,-1")

        parts = list(zip((2.0, -1.0), of(registry, *(p[:-2] for p in pair)), strict=True))
        assert distance(changes(version), summed(parts)) < 1e-5
        assert version.manifest.peft["use_rslora"] is False


def test_the_size_of_a_change_is_that_of_its_matrices(registry: Registry) -> None:
    parents = [Lora.of(registry.find(f"{name}@1")) for name in "ac"]
    parts = list(zip((2.0, -0.7), parents, strict=True))

    whole = summed(list(zip((2.0, -0.7), of(registry, "a", "c"), strict=True)))
    want = sum(float(change.pow(2).sum()) for change in whole.values()) ** 0.5
    assert size_of_change(parts) == pytest.approx(want, rel=1e-6)


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
