"""The arithmetic of merging, against the mathematics and against small rewritings of the papers."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.bases import Base
from adapters.registry import Registry
from finetune.lora import Lora, size_of_change
from tests.finetune.merging import (
    WEIGHTS,
    changes,
    distance,
    merge_into_m,
    of,
    summed,
    with_parents,
)
from tests.made import Recipe, adapter_folder


@pytest.fixture
def registry(home: Path, base: Base) -> Registry:
    return with_parents(home, base)


@pytest.fixture
def merged(registry: Registry) -> Any:
    return partial(merge_into_m, registry)


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


def test_linear_is_not_the_sum_and_says_how_far_off(merged: Any, registry: Registry) -> None:
    version = merged("a@1", "b@1", "--method", "linear")

    off = distance(changes(version), summed([(0.5, c) for c in of(registry, "a", "b")]))
    assert off > 0.5
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
