"""The probe: prompts and log-probabilities by which a server proves a version.

The trainer records it with transformers and peft; a server loads the version and
compares what its own engine gives. Adapters that load and do nothing, or that run
with another scale, base or tensor order, do not pass.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.digests import digest_json
from adapters.errors import InvalidManifest

TOLERANCE_NATS = {"float32": 0.02, "bfloat16": 0.25, "float16": 0.1}
"""Largest accepted difference of a log-probability, by the coarser of the two dtypes.

float32 sums differ between engines by about 1e-4 nats through the order of addition;
0.02 leaves room for fused kernels. bfloat16 keeps 8 bits of mantissa: each of some
tens of layers adds about 0.4 % to logits of size 10 to 20, and 0.1 to 0.2 nats were
seen. An effect under the tolerance is told from the base by all tokens of the probe
together, one under NOISE_NATS not at all.
"""

NOISE_NATS = {"float32": 0.001, "bfloat16": 0.1, "float16": 0.02}
"""Differences of log-probabilities that rounding alone makes, about."""


class ProbeItem(BaseModel):
    """Log-probabilities of the next token after one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_ids: list[int] = Field(min_length=1, description="[T]")
    token_ids: list[int] = Field(min_length=1, description="[K], each once")
    adapter_logprobs: list[float] = Field(description="[K] nats, with the adapter")
    base_logprobs: list[float] = Field(description="[K] nats, without it")

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        if not len(self.token_ids) == len(self.adapter_logprobs) == len(self.base_logprobs):
            raise ValueError("token_ids and both lists of log-probabilities differ in length")
        if len(set(self.token_ids)) != len(self.token_ids):
            raise ValueError("token_ids has a token twice")
        return self


class Probe(BaseModel):
    """All items, and the dtype in which they were computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    items: list[ProbeItem] = Field(min_length=1)

    def digest(self) -> str:
        return digest_json(self.model_dump(mode="json"))

    def effect(self) -> float:
        """Largest change in nats that the adapter makes to a probed log-probability."""
        return max(
            abs(with_it - without)
            for item in self.items
            for with_it, without in zip(item.adapter_logprobs, item.base_logprobs, strict=True)
        )

    def save(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises InvalidManifest when the file is not a probe."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InvalidManifest(
                f"{path.name} is not a readable probe: {error}", hint="publish the version again"
            ) from error


@dataclass(frozen=True, slots=True)
class Proof:
    """What a comparison found, in nats."""

    proved: bool
    error: float
    effect: float
    tolerance: float
    reason: str
    """Why it failed; of one that is proved, what is odd about it."""


def tolerance(*dtypes: str) -> float:
    """The tolerance for the coarsest of the dtypes; an unknown one counts as bfloat16."""
    return _coarsest(TOLERANCE_NATS, *dtypes)


def _coarsest(table: Mapping[str, float], *dtypes: str) -> float:
    return max(table.get(dtype, table["bfloat16"]) for dtype in dtypes)


def judge(
    probe: Probe, measured: list[list[float]], dtype: str, *, tensors_match: bool = False
) -> Proof:
    """Compare an engine's log-probabilities, [items][K] in nats, with the recorded ones.

    Proved means: within the tolerance of the adapter's, and closer to them, all together, than
    to the base's.

    Args:
        tensors_match: the engine's tensors were compared with the file's. Then an adapter
            whose effect drowns in the dtype's rounding is proved all the same, and told so.
    """
    limit, noise = tolerance(probe.dtype, dtype), _coarsest(NOISE_NATS, probe.dtype, dtype)
    error = from_adapter = from_base = 0.0
    for item, values in zip(probe.items, measured, strict=True):
        for got, want, base in zip(values, item.adapter_logprobs, item.base_logprobs, strict=True):
            distance = abs(got - want)
            error = max(error, math.inf if math.isnan(distance) else distance)
            from_adapter += distance**2
            from_base += (got - base) ** 2
    effect, nearer = probe.effect(), from_adapter < from_base
    if error > limit:
        like_base = "; its answers look like the base model's" if not nearer else ""
        reason = (
            f"log-probabilities differ from the trainer's by {error:.3g} nats, "
            f"{limit:g} is allowed{like_base}"
        )
        return Proof(False, error, effect, limit, reason)
    if nearer:
        return Proof(True, error, effect, limit, "")
    if tensors_match and 0.0 < effect <= noise:
        reason = f"its effect on the probe ({effect:.3g} nats) is as small as rounding's"
        return Proof(True, error, effect, limit, reason)
    reason = f"the adapter has no effect on the probe ({effect:.3g} nats)"
    return Proof(False, error, effect, limit, reason)
