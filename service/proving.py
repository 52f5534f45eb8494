"""The proof of a loaded version: its tensors lie in the engine, which answers with them."""

import asyncio
import logging
from typing import Any, Protocol

from adapters.errors import ProofFailed
from adapters.probe import Probe, Proof, judge
from adapters.registry import Version
from service.inspector import Inspection

logger = logging.getLogger("modiste.proving")


class ProvingEngine(Protocol):
    """What a proof needs of the engine."""

    dtype: str

    async def inspect(self, request: Any) -> Inspection: ...
    async def probe(
        self, prompt_ids: list[int], token_ids: list[int], request: Any
    ) -> list[float]: ...


async def prove(engine: ProvingEngine, version: Version, request: Any) -> Proof:
    """Prove a version that was just loaded.

    Raises:
        ProofFailed: a tensor has no module, or lies changed in its slot, or the engine's
            log-probabilities are not the trainer's.
    """
    probe = await asyncio.to_thread(Probe.load, version.folder / "probe.json")
    inspection = await engine.inspect(request)
    check_inspection(version.reference, inspection)
    measured = [  # one at a time: other streams wait for a pass
        await engine.probe(item.prompt_ids, item.token_ids, request) for item in probe.items
    ]
    proof = judge(probe, measured, engine.dtype, tensors_match=inspection.compared)
    if not proof.proved:
        raise ProofFailed(
            f"{version.reference} failed its proof: {proof.reason}",
            hint="publish it again from the trainer's output, for this base",
        )
    if proof.reason:
        logger.warning("%s: %s", version.reference, proof.reason)
    return proof


def check_inspection(reference: str, found: Inspection) -> None:
    """Raises ProofFailed when the engine took other tensors than the file has."""
    if found.unknown:
        raise ProofFailed(
            f"{reference} failed its proof: {len(found.unknown)} of {found.tensors} tensors "
            f"belong to no module of the engine, {found.unknown[0]} first",
            hint="save it with peft's save_pretrained; for another architecture use its own base",
        )
    if wrong := found.differing + found.leftover:
        raise ProofFailed(
            f"{reference} failed its proof: the engine's slot differs from the file in {wrong[0]}"
            f" and {len(wrong) - 1} more",
            hint="report this with the engine's version; the file may be sound",
        )
    if found.largest_b == 0:
        raise ProofFailed(
            f"{reference} failed its proof: every lora_B is zero, it changes nothing",
            hint="check that training ran and that the right checkpoint was saved",
        )
