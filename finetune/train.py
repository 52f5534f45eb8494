"""Training: one loop, from the base model to an adapter.

The loss is over the answers only. Everything that decides how it goes on is in the recipe,
the step and the last checkpoint, so a resumed run gives the losses of one that was never
stopped. Several workers may take each step together (`finetune/group.py`).
"""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from adapters.digests import sync_file
from adapters.errors import IncompatibleAdapter, InvalidInput
from finetune.base_model import load_model
from finetune.batching import Batches, derived_seed, split_batch
from finetune.checkpoint import (
    Best,
    Checkpoint,
    Interrupted,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from finetune.config import Recipe
from finetune.data import Row
from finetune.divergence import Guard
from finetune.epochs import EPOCHS, Keeper
from finetune.forward import inner_model, projection_is_plain
from finetune.full_gpu import told_when_full
from finetune.group import ALONE, Group
from finetune.metrics_file import metrics_file, read_metrics
from finetune.objectives import Objective, objective_of, usable_rows
from finetune.options import Training
from finetune.plan import Job, Plan
from finetune.progress import Progress
from finetune.quantization import load_quantized
from finetune.recomputation import recompute_elementwise
from finetune.reporters import reporting
from finetune.validation import Validation


@dataclass(frozen=True, slots=True)
class Learner:
    """What takes a step: the same on every worker, and in the same state."""

    options: Training
    plan: Plan
    objective: Objective
    batches: Batches
    model: Any
    optimizer: Any
    group: Group

    @classmethod
    def of(cls, job: Job, group: Group) -> Self:
        """A learner that has learned nothing yet.

        Raises:
            IncompatibleAdapter: the base's architecture can't be trained here.
            InvalidInput: no example has anything to learn from.
        """
        options, objective = job.recipe.training, objective_of(job.recipe.training)
        batches = _batches(job, objective)
        model = _new_adapter(job, batches.rows[0])
        optimizer = make_optimizer(model, options)
        return cls(options, job.plan, objective, batches, model, optimizer, group)

    def take(self, step: int, batch: list[Row], rate: float) -> dict[str, float]:
        """Take a step, counted from 0, with this worker's share of its batch.

        Returns:
            Means over the whole batch, as `_optimise` says.
        """
        width = self.objective.width
        # dropout depends on the step, and on the worker, alone
        torch.manual_seed(derived_seed(self.options.seed, step, self.group.rank))
        parts = split_batch(self.group.share(batch), width, self.plan.micro_batch_tokens)
        units = sum(map(self.objective.units, batch))
        return _optimise(self, parts, units, rate)

    def load(self, path: Path) -> Checkpoint:
        """Take over what a checkpoint holds.

        Raises:
            InvalidInput: it is damaged, or of another release.
        """
        checkpoint = load_checkpoint(path)
        set_peft_model_state_dict(self.model, checkpoint.adapter)
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except ValueError as error:
            raise InvalidInput(
                f"{path.name} is of another release of the trainer: {error}",
                hint="start without --resume",
            ) from error
        return checkpoint


@told_when_full()
def train(
    job: Job,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    follow: Callable[[dict[str, Any]], None] | None = None,
    group: Group = ALONE,
) -> Path:
    """Train an adapter and write it to the job's folder.

    Args:
        job: checkpoints and metrics.jsonl are written to its folder.
        resume: go on from the last checkpoint, if there is one.
        stop: asked after each step.
        follow: told the figures of each regular checkpoint; what it raises ends training.
        group: the workers that take each step together, led by this one.

    Raises:
        Interrupted: `stop` said so; the checkpoint is written.
        Diverged: the loss is no finite number, or clearly worse than with earlier weights.
        IncompatibleAdapter: the base's architecture can't be trained here.
        InvalidInput: no example has anything to learn from, or a reporter is not installed.
        NotEnoughMemory: of the GPU.
    """
    options, plan, folder = job.recipe.training, job.plan, job.folder
    learner = Learner.of(job, group)
    objective, batches, model = learner.objective, learner.batches, learner.model
    validation = Validation(job, objective)
    step, best = _restore(folder, learner) if resume else forget(folder)
    guard = Guard(folder / "checkpoints", options.checkpoint_every_steps, objective, batches)
    guard.replay(e for e in read_metrics(folder / "metrics.jsonl") if e["step"] <= step)
    keeper = Keeper(folder, options, plan, save_adapter)
    progress = Progress(plan.tokens) if progress is None else progress
    model.train()
    with (
        progress,
        metrics_file(folder / "metrics.jsonl", step) as write,
        reporting(job, step, progress.console) as report,
    ):
        progress.skip(step)
        while step < plan.steps and not _settled(best, options.patience):
            batch, rate = batches.at(step), learning_rate(step, plan.steps, options)
            group.begin(step)
            found = learner.take(step, batch, rate)
            step += 1
            guard.judge(model, step, found["loss"], rate)
            tokens = sum(map(objective.tokens, batch))
            entry: dict[str, Any] = {
                "step": step, "epoch": (step - 1) // plan.batches_per_epoch, **found,
                "learning_rate": rate, "tokens": tokens, "time": time.time(),
                "tokens_per_second": progress.advance(step, plan.steps, tokens, found["loss"]),
            }  # fmt: skip
            if group.size > 1:
                entry["workers"] = group.size
            regular = step % options.checkpoint_every_steps == 0 or step == plan.steps
            if regular:  # never where a run happens to be stopped: it would choose differently
                entry |= (figures := validation(model))
                if options.best_by is not None:
                    best = validation.better(best, figures, model, step)
            write(entry)
            report(entry)
            keeper.look(model, step)
            stopping = stop() and step < plan.steps
            if regular or stopping:
                here = _snapshot(step, learner, best)
                save_checkpoint(folder / "checkpoints", here, guard.good_step)
            if stopping:
                raise Interrupted(step)
            if regular and follow is not None:
                follow(entry)
    if best is not None:
        set_peft_model_state_dict(model, best.adapter)
        progress.chosen(best.step, str(options.best_by), best.value)
    guard.check_finite(model)
    return save_adapter(model, folder / "adapter")


def _batches(job: Job, objective: Objective) -> Batches:
    options = job.recipe.training
    rows = usable_rows(job.prepared.of("train"), objective)
    if not rows:
        raise InvalidInput(
            "no training example has anything to learn from",
            hint="raise training.max_length or shorten the prompts",
            param="data.train",
        )
    return Batches(rows, objective.width, options.batch_bounds, options.seed)


def _new_adapter(job: Job, row: Row) -> Any:
    """The base model with a fresh adapter; the seed decides its first values."""
    torch.manual_seed(job.recipe.training.seed)
    base, plan = job.base, job.plan
    load = load_model if job.recipe.training.quantization == "none" else load_quantized
    model = attach_lora(load(base.path, plan.dtype, plan.device), job.recipe, base.name)
    if not projection_is_plain(model, row.ids[:16]):
        raise IncompatibleAdapter(
            f"base {base.name}: {base.architecture} changes its logits after the projection",
            hint="use another base model",
            param="base",
        )
    if job.start is not None:
        take_over(model, job.start)
    if plan.activation_checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    else:
        recompute_elementwise(model)
    if plan.device == "cuda" and plan.dtype == "bfloat16":
        adapt_in_bfloat16(model, plan.device)
    return model


def adapt_in_bfloat16(model: Any, device: str) -> None:
    """Let the adapter's products be bfloat16 as the base's are; its weights stay float32.

    In float32 they would take a GPU longer than the base's own products, and keep copies of all
    that the adapter reads.
    """
    inner = inner_model(model)
    inner.forward = torch.autocast(device, torch.bfloat16)(inner.forward)
    for module in inner.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def attach_lora(model: Any, recipe: Recipe, base_name: str) -> Any:
    """Wrap a base model with a new LoRA adapter; its B matrices are zero.

    Raises:
        IncompatibleAdapter: the base has none of the target modules.
    """
    lora = recipe.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        use_rslora=lora.use_rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        raise IncompatibleAdapter(
            f"base {base_name} can't be adapted: {error}",
            hint="set lora.target_modules to names of its linear modules",
            param="lora.target_modules",
        ) from error
    config.base_model_name_or_path = (
        base_name  # peft puts the folder there, which means nothing elsewhere
    )
    return wrapped


def take_over(model: Any, file: Path) -> None:
    """Give a model's adapter the weights of another one of the same shape.

    Raises:
        IncompatibleAdapter: it has another shape.
    """
    theirs, ours = load_file(file), get_peft_model_state_dict(model)
    shapes = [{name: weight.shape for name, weight in state.items()} for state in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise IncompatibleAdapter(
            "the version that training starts from has another shape than lora gives",
            hint="set lora.r and lora.target_modules to what the version has",
            param="lora",
        )
    set_peft_model_state_dict(model, theirs)


def make_optimizer(model: Any, options: Training) -> torch.optim.AdamW:
    """AdamW in two groups: A, and B, which learns faster with LoRA+ (Hayou et al. 2024)."""
    sides: dict[bool, list[Any]] = {False: [], True: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            sides["lora_B" in name].append(weight)
    groups = [
        {"params": sides[False], "ratio": 1.0},
        {"params": sides[True], "ratio": options.loraplus_lr_ratio},
    ]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=options.weight_decay)


def learning_rate(step: int, steps: int, options: Training) -> float:
    """Linear warm-up to the peak, then a cosine towards zero; `step` counts from 0."""
    warmup = round(options.warmup_ratio * steps)
    if step < warmup:
        return options.peak_rate * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return options.peak_rate * 0.5 * (1 + math.cos(math.pi * done))


def _optimise(
    learner: Learner, parts: list[list[Row]], units: int, rate: float
) -> dict[str, float]:
    """One step over a batch in parts, as if it had gone through whole, by one worker.

    Args:
        parts: of this worker's share.
        units: losses that the whole batch gives.

    Returns:
        The batch's mean loss in nats, NaN when the gradient is not finite, and the means of
        the objective's other figures.
    """
    objective, optimizer = learner.objective, learner.optimizer
    totals = dict.fromkeys(("loss", *objective.figures), 0.0)
    for part in parts:
        losses = objective.losses(learner.model, part)
        (losses.values.sum() / units).backward()
        for name, values in {"loss": losses.values, **losses.figures}.items():
            totals[name] += float(values.detach().sum())
    weights = []
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]
        weights += group["params"]
    learner.group.add_up(weights, totals)
    norm = torch.nn.utils.clip_grad_norm_(weights, learner.options.max_grad_norm)
    if not torch.isfinite(norm):
        return {"loss": math.nan}
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: total / units for name, total in totals.items()}


def _settled(best: Best | None, patience: int | None) -> bool:
    """Whether the best adapter was not beaten for long enough."""
    return best is not None and patience is not None and best.waited >= patience


def _snapshot(step: int, learner: Learner, best: Best | None) -> Checkpoint:
    adapter = get_peft_model_state_dict(learner.model, save_embedding_layers=False)
    return Checkpoint(step, adapter, learner.optimizer.state_dict(), best)


def _restore(folder: Path, learner: Learner) -> tuple[int, Best | None]:
    """Load the last checkpoint, if there is one; returns the steps done and the best so far."""
    known = checkpoints(folder / "checkpoints")
    if not known:
        return forget(folder)
    checkpoint = learner.load(known[-1])
    return checkpoint.step, checkpoint.best


def forget(folder: Path) -> tuple[int, None]:
    """Remove what an earlier run left."""
    for name in ("checkpoints", EPOCHS, "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    return 0, None


def save_adapter(model: Any, folder: Path) -> Path:
    """Write adapter_model.safetensors and adapter_config.json, whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
    (partial / "README.md").unlink(missing_ok=True)
    path = partial / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()  # peft keeps a set; its order would change the digest
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    for file in partial.iterdir():
        sync_file(file)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question's answer; a second one interrupts."""
    asked = False

    def ask(_number: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
