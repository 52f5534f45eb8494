"""The comparison of a slot with a file, on small layers of vLLM's shapes."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from service.inspector import Inspection, Slots, together

RANK, WIDE, LARGEST_RANK = 2, 6, 4
SCALE = 0.5


class Layer:
    """The stacked matrices of a LoRA layer with some parts, two slots."""

    def __init__(self, parts: int = 1, tp_size: int = 1) -> None:
        self.tp_size = tp_size
        self.lora_a_stacked = tuple(torch.zeros(2, 1, LARGEST_RANK, WIDE) for _ in range(parts))
        self.lora_b_stacked = tuple(torch.zeros(2, 1, WIDE, LARGEST_RANK) for _ in range(parts))

    def put(self, part: int, slot: int, a: Tensor, b: Tensor) -> None:
        self.lora_a_stacked[part][slot, 0, :RANK] = a
        self.lora_b_stacked[part][slot, 0, :, :RANK] = b * SCALE


def manager(**modules: Any) -> Any:
    packed = {"qkv": ["q", "k"]} if "qkv" in modules else {}
    return SimpleNamespace(modules=modules, packed_modules=packed)


def matrices(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(RANK, WIDE, generator=generator),
        torch.randn(WIDE, RANK, generator=generator),
    )


def inspect(slots: Slots, module: str, a: Tensor, b: Tensor) -> Inspection:
    slots.compare(f"{module}.lora_A.weight", a, module, None)
    slots.compare(f"{module}.lora_B.weight", b, module, SCALE)
    slots.look_for_leftovers()
    return slots.found


def test_a_slot_that_holds_the_file_is_found_so() -> None:
    layer, (a, b) = Layer(), matrices(1)
    layer.put(0, 1, a, b)
    found = inspect(Slots(manager(o=layer), 1), "o", a, b)
    assert found == Inspection(tensors=2, largest_b=float(b.abs().max()))


def test_parts_of_a_merged_layer_are_told_apart() -> None:
    layer, (a, b), (other_a, other_b) = Layer(parts=2), matrices(1), matrices(2)
    layer.put(0, 0, a, b)
    layer.put(1, 0, other_a, other_b)
    slots = Slots(manager(qkv=layer), 0)
    assert inspect(slots, "q", a, b).differing == []
    assert inspect(slots, "k", a, b).differing == ["k.lora_A.weight", "k.lora_B.weight"]


def test_another_slot_another_scale_or_rest_of_a_larger_rank_differ() -> None:
    layer, (a, b) = Layer(), matrices(1)
    layer.put(0, 0, a, b)
    both = ["o.lora_A.weight", "o.lora_B.weight"]
    assert inspect(Slots(manager(o=layer), 1), "o", a, b).differing == both
    layer.lora_b_stacked[0][0] *= 2
    assert inspect(Slots(manager(o=layer), 0), "o", a, b).differing == both[1:]
    layer.put(0, 0, a, b)
    layer.lora_a_stacked[0][0, 0, RANK, 0] = 1e-9
    assert inspect(Slots(manager(o=layer), 0), "o", a, b).differing == both[:1]


def test_a_tensor_without_a_module_and_a_module_without_a_tensor() -> None:
    layer, (a, b) = Layer(), matrices(1)
    layer.put(0, 0, a, b)
    found = inspect(Slots(manager(o=layer), 0), "layers.9.o", a, b)
    assert found.unknown == ["layers.9.o.lora_A.weight", "layers.9.o.lora_B.weight"]
    assert found.leftover == ["o"]


def test_split_layers_and_experts_are_known_but_not_compared() -> None:
    a, b = matrices(1)
    split = inspect(Slots(manager(o=Layer(tp_size=2)), 0), "o", a, b)
    assert (split.compared, split.unknown, split.differing) == (False, [], [])
    experts = SimpleNamespace(lora_b_stacked=(1, 2, 3))
    found = inspect(Slots(manager(experts=experts), 0), "experts.3.up_proj", a, b)
    assert (found.compared, found.unknown) == (False, [])


def test_a_tensor_is_unknown_when_no_worker_has_its_module() -> None:
    def worker(**found: Any) -> dict[str, Any]:
        inspection = Inspection(tensors=4, **found)
        return {key: getattr(inspection, key) for key in Inspection.__slots__}

    both = together(
        [
            worker(unknown=["a", "z"], largest_b=1.0),
            worker(unknown=["b", "z"], differing=["d"], compared=False),
        ]
    )
    assert both == Inspection(4, unknown=["z"], differing=["d"], largest_b=1.0, compared=False)
