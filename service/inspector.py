"""What vLLM's worker tells of an adapter that it loaded: which tensors it took, bit by bit.

vLLM skips a tensor whose name it doesn't know and answers as the base; it says so to nobody.
Here each tensor of the file is looked up in the engine's modules and compared with the slot
that requests will use. vLLM adds the method to its worker's class (`--worker-extension-cls`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(slots=True)
class Inspection:
    """Findings of one worker, or of all workers together."""

    tensors: int = 0
    """Of the file."""
    unknown: list[str] = field(default_factory=list)
    """Of the file, without a module in this worker's part of the model."""
    differing: list[str] = field(default_factory=list)
    """In the slot, but with other values than the file's."""
    leftover: list[str] = field(default_factory=list)
    """Modules that the file doesn't have and whose slot is not empty."""
    largest_b: float = 0.0
    """Largest absolute value of all B matrices; 0: no effect."""
    compared: bool = True
    """Whether values were compared: those of layers that are split over devices are not."""


class Inspector:
    """A method of the worker's class."""

    model_runner: Any

    def inspect_adapter(self, identifier: int, folder: str) -> dict[str, Any]:
        """Compare an adapter's slot with its file; the fields of `Inspection`."""
        from vllm.lora.peft_helper import PEFTHelper
        from vllm.lora.utils import parse_fine_tuned_lora_name

        manager = self.model_runner.lora_manager._adapter_manager  # there is no public way
        if identifier not in manager.lora_index_to_id:
            manager.activate_adapter(identifier)  # others ran since it was loaded
        slots = Slots(manager, manager.lora_index_to_id.index(identifier))
        helper = PEFTHelper.from_local_dir(folder, None)
        mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
        mapper = mapper and mapper.get_rename_mapper()  # as vLLM's own loader does
        for name, tensor in load_file(Path(folder) / "adapter_model.safetensors").items():
            module, is_a = parse_fine_tuned_lora_name(name, mapper)
            _, scale = helper.get_rank_and_scaling(parse_fine_tuned_lora_name(name)[0])
            slots.compare(name, tensor, module, None if is_a else scale)
        slots.look_for_leftovers()
        return {key: getattr(slots.found, key) for key in Inspection.__slots__}


class Slots:
    """One slot of all LoRA layers of vLLM's manager, beside a file's tensors."""

    def __init__(self, manager: Any, slot: int) -> None:
        self._slot = slot
        self._places: dict[str, tuple[Any, int]] = {}
        """Module's name in the file to the engine's layer and the part of it."""
        self._others: list[str] = []
        """Layers of other kinds (experts): their names are known, their slots not compared."""
        self._seen: set[str] = set()
        self.found = Inspection()
        for name, layer in manager.modules.items():
            parts = manager.packed_modules.get(name, [name])
            if len(getattr(layer, "lora_b_stacked", ())) == len(parts):
                self._places.update({part: (layer, n) for n, part in enumerate(parts)})
            else:
                self._others.append(name)

    def compare(self, name: str, tensor: Tensor, module: str, scale: float | None) -> None:
        """Compare a matrix of the file, A [R, in] or B [out, R], with the slot's.

        Args:
            scale: what vLLM multiplies a B with when it loads it; None for an A.
        """
        found = self.found
        found.tensors += 1
        if scale is not None:
            found.largest_b = max(found.largest_b, float(tensor.abs().max()))
        self._seen.add(module)
        if module not in self._places:
            if any(module.startswith(other) for other in self._others):
                found.compared = False
            else:
                found.unknown.append(name)
            return
        layer, part = self._places[module]
        if getattr(layer, "tp_size", 1) > 1:
            found.compared = False
            return
        stacked = layer.lora_a_stacked if scale is None else layer.lora_b_stacked
        if not _holds(stacked[part][self._slot, 0], tensor, scale):
            found.differing.append(name)

    def look_for_leftovers(self) -> None:
        """What an earlier adapter may have left in the slot where this one has nothing."""
        self.found.leftover = [
            name
            for name, (layer, part) in self._places.items()
            if name not in self._seen and bool(layer.lora_b_stacked[part][self._slot].any())
        ]


def _holds(place: Tensor, matrix: Tensor, scale: float | None) -> bool:
    """Whether a slot, [R_max, in] or [out, R_max], has exactly this matrix and zeros beside it."""
    rows, columns = matrix.shape
    if rows > place.shape[0] or columns > place.shape[1]:
        return False
    wanted = matrix.to(device=place.device, dtype=place.dtype)
    if scale is not None and scale != 1:
        wanted = wanted * scale
    padded = bool(place[rows:].any()) or bool(place[:, columns:].any())
    return torch.equal(place[:rows, :columns], wanted) and not padded


def together(results: list[dict[str, Any]]) -> Inspection:
    """All workers' findings: a tensor is unknown when no part of the model has its module."""
    found = [Inspection(**result) for result in results]
    return Inspection(
        tensors=found[0].tensors,
        unknown=sorted(set.intersection(*(set(one.unknown) for one in found))),
        differing=sorted({name for one in found for name in one.differing}),
        leftover=sorted({name for one in found for name in one.leftover}),
        largest_b=max(one.largest_b for one in found),
        compared=all(one.compared for one in found),
    )
