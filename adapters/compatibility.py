"""What the engine serves of a LoRA: its configuration, its tensors, and a server's limits.

vLLM raises for some options of peft, and passes over others in silence, so that a server would
answer with something else than what was trained. What is served is written down here, and all
else is refused, options of later releases of peft too. `tests/adapters/test_compatibility.py`
compares every line with peft and vLLM themselves.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from adapters.errors import IncompatibleAdapter
from adapters.manifest import BaseRef, Manifest

NEVER_ADAPTED = ("lm_head", "embed_tokens")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for its largest LoRA rank."""

WITHOUT_EFFECT = frozenset(
    {
        # where it comes from
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
        "task_type",
        # of training alone
        "corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config",
        "runtime_config",
        # which modules were adapted: the tensors say it themselves
        "ensure_weight_tying", "exclude_modules", "layers_pattern", "layers_to_transform",
        # how the base's own weights lie, and parts of options that are off
        "fan_in_fan_out", "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""Options that decide nothing once the matrices are there: any value is served."""

READ = frozenset(
    {
        "peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern",
        "alpha_pattern", "init_lora_weights",
    }
)  # fmt: skip
"""Options whose values are looked at; vLLM scales by them as peft does."""

_MERGED = (
    "merge it into its base (peft's merge_and_unload), add the result with `modiste base add` and "
    "serve that as a base model"
)
_MERGE = f"train again without {{key}}, or {_MERGED}"
_RETRAIN = "train again without {key}: what it does can't be written into a base model either"
_OFF: tuple[object, ...] = (None, False)
_EMPTY: tuple[object, ...] = (None, False, [], {})

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "alora_invocation_tokens": (_EMPTY, _RETRAIN),
    "arrow_config": (_OFF, _RETRAIN),
    "bias": ((None, "none"), _MERGE),
    "kasa_config": (_OFF, _MERGE),
    "layer_replication": (_EMPTY, _RETRAIN),
    "lora_bias": (_OFF, _RETRAIN),
    "megatron_config": (_OFF, _MERGE),
    "modules_to_save": (_EMPTY, _MERGE),
    "monteclora_config": (_OFF, _MERGE),
    "target_parameters": (_EMPTY, f"train again with target_modules instead, or {_MERGED}"),
    "trainable_token_indices": (_EMPTY, _MERGE),
    "use_bdlora": (_OFF, _MERGE),
    "use_dora": (_OFF, _MERGE),
    "use_qalora": (_OFF, _RETRAIN),
    "velora_config": (_OFF, _MERGE),
}
"""Options that make something else of an adapter than B times A: the values that leave them off,
and the remedy for all others."""

PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Initial values that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change it,
and what is saved then belongs to the changed base."""

_PATTERN_KEY = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?")
"""Names, as a regular expression that takes no longer than they are long."""


# The configuration


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse peft options that vLLM does not serve, or serves wrong.

    Raises:
        IncompatibleAdapter: names the option, its value and the remedy.
    """
    if config.get("peft_type") != "LORA":
        raise IncompatibleAdapter(
            f"adapter_config peft_type={config.get('peft_type')!r} is not served",
            hint=f"train a LoRA, or {_MERGED}",
        )
    for key, (off, remedy) in REFUSED.items():
        if config.get(key) not in off:
            raise _refused(key, config, "is not served by the engine", remedy.format(key=key))
    for key in sorted(config.keys() - WITHOUT_EFFECT - READ - REFUSED.keys()):
        if config[key] not in _EMPTY:
            raise _refused(
                key, config, "is an option that is not known here",
                f"update modiste; where {key} is at its default value, take it out of "
                "adapter_config.json",
            )  # fmt: skip
    _check_start(config)
    _check_scale(config)
    _check_targets(config)


def _refused(key: str, config: Mapping[str, Any], problem: str, hint: str) -> IncompatibleAdapter:
    return IncompatibleAdapter(f"adapter_config {key}={config.get(key)!r} {problem}", hint=hint)


def _check_start(config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        raise _refused(
            "init_lora_weights", config, "goes with a changed base model",
            "convert it: peft's save_pretrained(path_initial_model_for_weight_conversion=…)",
        )  # fmt: skip


def _check_scale(config: Mapping[str, Any]) -> None:
    """Ranks and alphas, of all modules and of those that a pattern names."""
    for single, pattern, fits in (
        ("r", "rank_pattern", _is_rank), ("lora_alpha", "alpha_pattern", _is_alpha)
    ):  # fmt: skip
        named = config.get(pattern) or {}
        if not isinstance(named, dict) or not all(map(_PATTERN_KEY.fullmatch, named)):
            raise _refused(pattern, config, "does not name modules", "write names as its keys")
        for key, values in ((single, [config.get(single)]), (pattern, named.values())):
            if not all(map(fits, values)):
                raise _refused(
                    key, config, "is not what a LoRA has",
                    "save the adapter again with peft's save_pretrained",
                )  # fmt: skip
    if (largest := max([config["r"], *(config.get("rank_pattern") or {}).values()])) > RANKS[-1]:
        raise IncompatibleAdapter(
            f"adapter_config has rank {largest}, vLLM takes {RANKS[-1]} at most",
            hint=f"train again with r={RANKS[-1]} or less, or {_MERGED}",
        )


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_alpha(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value != 0


def _check_targets(config: Mapping[str, Any]) -> None:
    targets = config.get("target_modules")
    names = [targets] if isinstance(targets, str) else targets
    if not names or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise _refused(
            "target_modules", config, "names no modules",
            "save the adapter again with peft's save_pretrained",
        )  # fmt: skip
    if bad := [name for name in names if _never(name)]:
        raise IncompatibleAdapter(
            f"adapter_config target_modules has {bad}, which is never adapted",
            hint="train the attention and MLP projections only",
        )


def _never(name: str) -> bool:
    return any(never in name for never in NEVER_ADAPTED)


# The tensors


def check_tensors(path: Path, config: Mapping[str, Any]) -> None:
    """Check that a safetensors file holds the LoRA that its configuration speaks of.

    Args:
        config: what `check_config` passed.

    Raises:
        IncompatibleAdapter: unreadable, tensors of another kind, a pair that is not whole, another
            rank, a module that target_modules doesn't name, every B zero.
    """
    shapes = tensor_shapes(path)
    others = [n for n in shapes if not n.endswith(("lora_A.weight", "lora_B.weight"))]
    if others or not shapes:
        raise IncompatibleAdapter(
            f"{path.name} holds {others[:3] or 'no tensors'}, not only LoRA matrices",
            hint="save with peft's save_pretrained, without modules_to_save",
        )
    _check_pairs(shapes)
    for name, shape in shapes.items():
        rank = shape[0 if "lora_A" in name else 1] if len(shape) == 2 else None
        wanted = rank_of(module_of(name), config)
        if rank != wanted:
            found = f"shape {shape}" if rank is None else f"rank {rank}"
            raise IncompatibleAdapter(
                f"{name} has {found}, adapter_config says r={wanted}",
                hint="save the adapter and its adapter_config.json together again",
            )
    _check_named({module_of(name) for name in shapes}, config["target_modules"])
    if not _has_effect(path):
        raise IncompatibleAdapter(
            "every lora_B matrix is zero: the adapter changes nothing",
            hint="check that training ran and that the right checkpoint was saved",
        )


def _check_pairs(shapes: Mapping[str, list[int]]) -> None:
    sides: dict[str, list[str]] = {}
    for name in shapes:
        if _never(name):
            raise IncompatibleAdapter(
                f"{name} is of a layer that is never adapted",
                hint="train the attention and MLP projections only",
            )
        sides.setdefault(module_of(name), []).append(name.rsplit(".", 2)[1])
    for module, found in sides.items():
        if sorted(found) != ["lora_A", "lora_B"]:
            number = "only one of" if len(found) == 1 else "more than one of"
            raise IncompatibleAdapter(
                f"{module} has {number} lora_A and lora_B",
                hint="save the adapter again with peft's save_pretrained",
            )


def _check_named(modules: set[str], targets: list[str] | str) -> None:
    """Servers compare these names with the modules that they adapt."""
    if isinstance(targets, str):
        raise IncompatibleAdapter(
            f"adapter_config target_modules={targets!r} is a pattern, not a list of names",
            hint="write the names: `modiste adapters import` does so by itself",
        )
    if strange := sorted(m for m in modules if not any(is_named(m, target) for target in targets)):
        raise IncompatibleAdapter(
            f"{strange[0]} has tensors, but adapter_config target_modules does not name it",
            hint="save the adapter and its adapter_config.json together again",
        )


def is_named(module: str, target: str) -> bool:
    """Whether an entry of target_modules stands for a module, as peft reads it."""
    return module == target or module.endswith(f".{target}")


def module_of(tensor: str) -> str:
    """The module that a LoRA matrix belongs to, by its name in the base model."""
    return tensor.removeprefix("base_model.model.").rsplit(".", 2)[0]


def rank_of(module: str, config: Mapping[str, Any]) -> int:
    """A module's rank: the first entry of rank_pattern that names it, else r."""
    for key, rank in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):  # as peft and vLLM do
            return int(rank)
    return int(config["r"])


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of a safetensors file's tensors by name, from its header alone.

    Raises:
        IncompatibleAdapter: not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise IncompatibleAdapter(
            f"{path.name} is not a whole safetensors file: {error}",
            hint="copy or save the adapter again",
        ) from error


def _has_effect(path: Path) -> bool:
    """Whether some lora_B has a byte that is not zero, in any dtype (numpy lacks bfloat16)."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        for name, entry in header.items():
            if not name.endswith("lora_B.weight"):
                continue
            start, end = entry["data_offsets"]
            file.seek(8 + header_size + start)
            # -0.0 has a sign bit; it never comes from training
            if any(file.read(end - start)):
                return True
    return False


# A server


class Takes(BaseModel):
    """What a running server takes; it says so in the database."""

    model_config = ConfigDict(frozen=True)

    base: BaseRef
    max_rank: int
    target_modules: frozenset[str]
    process: int = 0

    def serves_base_of(self, manifest: Manifest) -> bool:
        return not manifest.base.differences(self.base)

    def misfit(self, manifest: Manifest) -> tuple[str, str] | None:
        """Why a version for its base is beyond the server, and how to restart it; None: it fits."""
        if manifest.rank > self.max_rank:
            enough = min((rank for rank in RANKS if rank >= manifest.rank), default=RANKS[-1])
            return (
                f"it has rank {manifest.rank}, the server takes {self.max_rank}",
                f"max_lora_rank {enough}",
            )
        targets = manifest.peft["target_modules"]
        adapted = {name.rsplit(".", 1)[-1] for name in targets}
        if others := ", ".join(sorted(adapted - self.target_modules)):
            return (
                f"it adapts {others}, which is off in the server",
                f"{others} in lora_target_modules",
            )
        return None
