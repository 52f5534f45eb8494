"""`finetune plan`: which base and which settings, for a task, its data and this machine.

What can be counted is counted on the data, what can be measured is measured: the proposal is
tried for a few real steps before it is made, and a base that is too slow or too large gives
way to the next smaller one.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from adapters.bases import Base, read_config
from adapters.errors import InvalidInput
from adapters.prompt import Renderer
from adapters.registry import Registry
from finetune.base_model import free_memory, load_tokenizer
from finetune.config import Recipe, with_settings
from finetune.data import Prepared, Row, prepare, spooled
from finetune.full_gpu import NotEnoughMemory
from finetune.memory import BYTES, Shape, memory_bytes
from finetune.objectives import Objective, objective_of, usable_rows
from finetune.plan import make_plan
from finetune.precision import faster_dtype
from finetune.quantization import kept_dtype
from finetune.trial import Estimate, measure

_RANKS = (8, 16, 32, 64)
_LEAST_RANK = {"classify": 8, "answer": 8, "translate": 16, "generate": 16}
_LEAST_STEPS = 100
_BATCHES = {"cpu": (2048, 1024, 512, 256), "cuda": (16384, 8192, 4096, 2048, 1024, 512)}
"""Tokens of a batch, from those that use the device well to those that give many steps."""
_LENGTHS_STEP, _WHOLE_UP_TO = 64, 2048
_CUT_SHARE = 0.01
_MEMORY_SHARE = 0.8
_PROCESS_BYTES = 900 * 2**20
"""What Python, torch and transformers take before any model is loaded."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting and why."""

    name: str
    value: Any
    reason: str


@dataclass(slots=True)
class Proposal:
    """A recipe with reasons, and what it will take."""

    recipe: Recipe
    choices: list[Choice]
    estimate: Estimate
    memory_bytes: int
    bases: dict[str, str] = field(default_factory=dict)
    """Every base that is known, and why it was chosen or not."""

    def to_json(self) -> dict[str, Any]:
        return {
            "choices": [asdict(choice) for choice in self.choices],
            "estimate": asdict(self.estimate),
            "memory_bytes": self.memory_bytes,
            "bases": self.bases,
            "recipe": self.recipe.model_dump(mode="json"),
        }

    def to_yaml(self) -> str:
        """The recipe, with the reasons as comments."""
        lines = [f"# {c.name}: {c.value}. {c.reason}" for c in self.choices]
        return "\n".join([*lines, self.recipe.to_yaml()])


def propose(
    recipe: Recipe,
    registry: Registry,
    *,
    fixed: Collection[str] = (),
    hours: float = 8.0,
    say: Callable[[str], None] = lambda _: None,
) -> Proposal:
    """Propose a base and settings for a recipe's task and data.

    Args:
        fixed: dotted keys that stay as the recipe has them.
        hours: training may take so long.
        say: told what is being done.

    Raises:
        InvalidInput: no base will do, with each one's reason; or what reading data raises.
        BaseNotFound: there is none.
    """
    known = registry.bases() if recipe.base is None else [registry.base(recipe.base)]
    if not known:
        known = [registry.base(None)]  # says how to add one
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = _Machine(device, memory_bytes(device), hours)
    verdicts: dict[str, str] = {}
    for base in sorted(known, key=lambda base: -base.parameters):
        say(f"looking at {base.name}")
        if not base.lora:
            verdicts[base.name] = f"can't be adapted: {base.lora_reason}"
            continue
        found = _try(recipe, base, machine, fixed)
        if isinstance(found, str):
            verdicts[base.name] = found
            free_memory()
            continue
        verdicts[base.name] = "chosen: the largest that fits this machine and the time"
        found.bases = verdicts | {
            other.name: "smaller than the chosen one" for other in known
            if other.name not in verdicts
        }  # fmt: skip
        base_reason = f"{base.parameters / 1e6:.0f} M parameters, {verdicts[base.name]}"
        found.choices.insert(0, Choice("base", base.name, base_reason))
        return found
    reasons = "".join(f"\n  {name}: {why}" for name, why in verdicts.items())
    raise InvalidInput(
        f"no base model will do:{reasons}",
        hint="add a smaller one with `modiste base add`, or allow more time with --hours",
        param="base",
    )


@dataclass(frozen=True, slots=True)
class _Machine:
    device: str
    memory: int
    """Bytes."""
    hours: float


def _try(recipe: Recipe, base: Base, machine: _Machine, fixed: Collection[str]) -> Proposal | str:
    """A proposal with this base, or why there is none."""
    whole = _changed(recipe, {"base": base.name, "training.max_length": base.context_length})
    prepared = prepare(whole, Renderer(load_tokenizer(base.path)), base.context_length)
    rows = usable_rows(prepared.of("train"), objective_of(recipe.training))
    if not rows:
        return "no training example has anything to learn from"
    choices = _choose(recipe, base, rows, machine, set(fixed))
    if isinstance(choices, str):
        return choices
    settings = {choice.name: choice.value for choice in choices if "." in choice.name}
    chosen = _changed(recipe, {"base": base.name, **settings})
    if "lora.alpha" not in fixed:  # the update's scale, alpha / r, stays
        scale = recipe.lora.alpha / recipe.lora.r
        chosen = _changed(chosen, {"lora.alpha": chosen.lora.r * scale})
    prepared = Prepared(
        spooled(_cut(row, chosen.training.max_length) for row in prepared.rows),
        prepared.labels, prepared.sources, prepared.counts,
    )  # fmt: skip
    plan = make_plan(chosen, prepared.of("train"), base.parameters, base.path)
    if plan.seconds > 4 * machine.hours * 3600:  # by matrix products alone; else it is measured
        return f"would train for about {plan.seconds / 3600:.0f} h"
    try:
        estimate = measure(chosen, prepared, base, plan)
    except NotEnoughMemory as error:
        return error.message
    if estimate.seconds > machine.hours * 3600:
        return f"would train for {estimate.seconds / 3600:.1f} h, as measured"
    return Proposal(chosen, choices, estimate, machine.memory)


def _choose(
    recipe: Recipe, base: Base, rows: Sequence[Row], machine: _Machine, fixed: set[str]
) -> list[Choice] | str:
    """The settings with their reasons, or why none fit the memory."""
    sizes, objective = _Sizes.of(base), objective_of(recipe.training)
    method = Choice("method", "lora", "the server runs many adapters on one base: LoRA alone")
    spoken = sum(map(objective.spoken, rows))
    chosen = [method, _rank(recipe, spoken, sizes), _length(rows, base), _epochs(recipe, rows)]
    chosen = [_fixed(recipe, choice, fixed) for choice in chosen]
    value = {choice.name: choice.value for choice in chosen}
    longest, total = _loads((_cut(row, value["training.max_length"]) for row in rows), objective)
    total *= value["training.epochs"]
    dtypes = [_precision(base, machine)]
    if dtypes[0].value == "float32":
        smaller = Choice("training.dtype", "bfloat16", "float32 does not fit this memory")
        dtypes.append(smaller)
    for dtype in (_fixed(recipe, dtype, fixed) for dtype in dtypes):
        fixed_bytes = sizes.weights_bytes(base.parameters, dtype.value, value["lora.r"])
        kept = kept_dtype(dtype.value, recipe.training.quantization)
        each = sizes.shape.token_bytes(kept, machine.device, checkpointing=False)
        free = _MEMORY_SHARE * machine.memory - fixed_bytes
        batch = _fixed(recipe, _batch(machine.device, total, free / each), fixed)
        if free >= each * max(batch.value, longest):
            return [*chosen, batch, dtype]
    needed = (fixed_bytes + each * max(batch.value, longest)) / 2**30
    return f"needs about {needed:.1f} GiB of {machine.memory / 2**30:.1f}"


def _loads(rows: Iterable[Row], objective: Objective) -> tuple[int, int]:
    """Tokens of the longest example as a batch has it, and of one pass over all."""
    longest = total = 0
    for row in rows:
        longest, total = max(longest, objective.width(row)), total + objective.tokens(row)
    return longest, total


def _fixed(recipe: Recipe, choice: Choice, fixed: set[str]) -> Choice:
    """The recipe's own value, where it was asked for."""
    if choice.name not in fixed:
        return choice
    section, key = choice.name.split(".")
    value = getattr(getattr(recipe, section), key)
    return choice if value == "auto" else Choice(choice.name, value, "as asked for")


def _rank(recipe: Recipe, spoken: int, sizes: "_Sizes") -> Choice:
    """An adapter learns as much as it has room for: no fewer numbers than supervised tokens."""
    ranks = [rank for rank in _RANKS if rank >= _LEAST_RANK[recipe.task]]
    rank = next((rank for rank in ranks if sizes.lora_numbers(rank) >= spoken), ranks[-1])
    room = sizes.lora_numbers(rank) / 1e6
    reason = f"{room:.1f} M trainable numbers for {spoken:,} supervised tokens ({recipe.task})"
    return Choice("lora.r", rank, reason)


def _length(rows: Sequence[Row], base: Base) -> Choice:
    lengths = sorted(row.longest for row in rows)
    wanted = lengths[-1]
    if wanted > _WHOLE_UP_TO:
        wanted = lengths[int((1 - _CUT_SHARE) * (len(lengths) - 1))]
    wanted = min(-(-wanted // _LENGTHS_STEP) * _LENGTHS_STEP, base.context_length)
    cut = sum(length > wanted for length in lengths)
    reason = f"the longest example has {lengths[-1]:,} tokens; {cut} of {len(lengths)} are cut"
    return Choice("training.max_length", max(wanted, 8), reason)


def _epochs(recipe: Recipe, rows: Sequence[Row]) -> Choice:
    if recipe.training.method == "dpo":
        return Choice("training.epochs", 1, "preferences are read once: more passes learn noise")
    epochs = 3 if len(rows) < 2_000 else 2 if len(rows) < 20_000 else 1
    reason = f"{len(rows):,} training examples: the fewer there are, the more often they are read"
    return Choice("training.epochs", epochs, reason)


def _batch(device: str, total: int, fitting: float) -> Choice:
    """The largest that fits and leaves enough steps."""
    sizes = _BATCHES[device]
    enough = [n for n in sizes if n <= fitting and total / n >= _LEAST_STEPS]
    size = enough[0] if enough else sizes[-1]
    reason = f"about {total // size:,} steps of {total:,} tokens in all"
    if enough and size != sizes[0]:
        larger = sizes[sizes.index(size) - 1]
        few = f"{larger} leave fewer than {_LEAST_STEPS} steps"
        reason += "; " + (few if larger <= fitting else f"{larger} do not fit the memory")
    return Choice("training.batch_tokens", size, reason)


def _precision(base: Base, machine: _Machine) -> Choice:
    """What `training.dtype: auto` would take, with the reason."""
    dtype, seconds = faster_dtype(base.path, machine.device, _BATCHES[machine.device][0])
    reason = "the base is stored and served in it"
    if seconds:
        told = ", ".join(f"{name} {1e3 * took:.0f}" for name, took in seconds.items())
        reason = f"a layer's step on this {machine.device} takes, in ms: {told}"
    return Choice("training.dtype", dtype, reason)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of a base, from its config.json."""

    shape: Shape
    queries: int
    """Width of all heads' queries, as of `keys`."""
    keys: int

    @classmethod
    def of(cls, base: Base) -> "_Sizes":
        config = read_config(base.path)
        config = config.get("text_config", config)
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        width = config.get("head_dim") or hidden // heads
        kv_heads = config.get("num_key_value_heads") or heads
        inner = config.get("intermediate_size") or 4 * hidden
        shape = Shape(config["num_hidden_layers"], hidden, inner, config["vocab_size"])
        return cls(shape, heads * width, kv_heads * width)

    def lora_numbers(self, rank: int) -> int:
        """Trainable numbers of an adapter on all linear layers."""
        hidden = self.shape.hidden
        attention = 2 * (hidden + self.queries) + 2 * (hidden + self.keys)
        return self.shape.layers * rank * (attention + 3 * (hidden + self.shape.intermediate))

    def weights_bytes(self, parameters: int, dtype: str, rank: int) -> int:
        """What is there whatever the batch: the process, the base, the adapter with Adam's sums."""
        return _PROCESS_BYTES + parameters * BYTES[dtype] + 16 * self.lora_numbers(rank)


def _changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with other values at dotted keys, checked again."""
    return with_settings(recipe.model_dump(mode="json"), settings, "recipe")


def _cut(row: Row, length: int) -> Row:
    """A row as preparation with this max_length makes it."""
    kept = [position for position in row.supervised if position < length]
    rejected = [position for position in row.rejected_supervised if position < length]
    lost = len(row.supervised) + len(row.rejected_supervised) - len(kept) - len(rejected)
    return replace(
        row, ids=row.ids[:length], supervised=kept, rejected_ids=row.rejected_ids[:length],
        rejected_supervised=rejected, truncated=row.longest > length,
        lost=row.lost + lost,
    )  # fmt: skip


def write_recipe(proposal: Proposal, path: Path) -> None:
    """Write the recipe with its reasons.

    Raises:
        InvalidInput: the file is there already, or its folder is not.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(proposal.to_yaml())
    except OSError as error:
        raise InvalidInput(
            f"can't write {path}: {error.strerror}", hint="name another file", param="write"
        ) from error
