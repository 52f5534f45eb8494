"""Training: one loop, from the base model to an adapter.

The loss is over supervised tokens only. Everything that decides how it goes on is in the
seed, the step and the last checkpoint, so a resumed run gives the losses of one that was
never stopped.
"""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from adapters.errors import AdapterError, IncompatibleAdapter
from finetune.base_model import load_model
from finetune.batching import derived_seed, make_batches
from finetune.checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from finetune.config import Recipe, Training
from finetune.data import Row
from finetune.forward import projection_is_plain, supervised_losses
from finetune.plan import Job
from finetune.progress import Progress


class Diverged(AdapterError):
    """The loss is no number any more."""

    code = "training_diverged"


class Interrupted(Exception):
    """Training was asked to stop and left a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def train(
    job: Job,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Path:
    """Train an adapter and write it to the job's folder.

    Args:
        job: checkpoints and metrics.jsonl are written to its folder.
        resume: go on from the last checkpoint, if there is one.
        stop: asked after each step.

    Raises:
        Interrupted: `stop` said so; the checkpoint is written.
        Diverged: the loss or its gradient is no finite number.
        IncompatibleAdapter: the base's architecture can't be trained here.
    """
    options, plan, folder = job.recipe.training, job.plan, job.folder
    rows = [row for row in job.prepared.of("train") if row.supervised]
    model = _new_adapter(job, rows[0])
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=options.weight_decay)
    step = _restore(folder, model, optimizer) if resume else _forget(folder)
    progress = Progress(plan.tokens) if progress is None else progress
    batches: list[list[Row]] = []
    model.train()
    with progress, _metrics_file(folder / "metrics.jsonl", step) as write:
        progress.skip(step)
        while step < plan.steps:
            epoch, position = divmod(step, plan.batches_per_epoch)
            if not batches or position == 0:
                batches = epoch_batches(rows, options, epoch)
            batch = batches[position]
            rate = learning_rate(step, plan.steps, options)
            torch.manual_seed(derived_seed(options.seed, step))  # dropout depends on the step alone
            loss = _optimise(model, optimizer, weights, batch, rate, options.max_grad_norm)
            step += 1
            if not math.isfinite(loss):
                raise _diverged(step, loss, rate)
            tokens = sum(len(row.ids) for row in batch)
            entry: dict[str, Any] = {
                "step": step, "epoch": epoch, "loss": loss, "learning_rate": rate,
                "tokens": tokens, "time": time.time(),
                "tokens_per_second": progress.advance(step, plan.steps, tokens, loss),
            }  # fmt: skip
            stopping = stop() and step < plan.steps
            if stopping or step % options.checkpoint_every_steps == 0 or step == plan.steps:
                entry |= _validate(model, job.prepared.of("validation"), options)
                save_checkpoint(folder / "checkpoints", _snapshot(step, model, optimizer))
            write(entry)
            if stopping:
                raise Interrupted(step)
    return save_adapter(model, folder / "adapter")


def _new_adapter(job: Job, row: Row) -> Any:
    """The base model with a fresh adapter; the seed decides its first values."""
    torch.manual_seed(job.recipe.training.seed)
    base, plan = job.base, job.plan
    model = attach_lora(load_model(base.path, plan.dtype, plan.device), job.recipe, base.name)
    if not projection_is_plain(model, row.ids[:16]):
        raise IncompatibleAdapter(
            f"base {base.name}: {base.architecture} changes its logits after the projection",
            hint="use another base model",
            param="base",
        )
    return model


def attach_lora(model: Any, recipe: Recipe, base_name: str) -> Any:
    """Wrap a base model with a new LoRA adapter; its B matrices are zero.

    Raises:
        IncompatibleAdapter: the base has none of the target modules.
    """
    lora = recipe.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
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


def epoch_batches(rows: list[Row], options: Training, epoch: int) -> list[list[Row]]:
    """The batches of one pass."""
    lengths = [len(row.ids) for row in rows]
    batches = make_batches(lengths, options.batch_tokens, derived_seed(options.seed, epoch))
    return [[rows[position] for position in batch] for batch in batches]


def learning_rate(step: int, steps: int, options: Training) -> float:
    """Linear warm-up to the peak, then a cosine towards zero; `step` counts from 0."""
    warmup = round(options.warmup_ratio * steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _optimise(
    model: Any, optimizer: Any, weights: list[Any], batch: list[Row], rate: float, max_norm: float
) -> float:
    """One step; returns the batch's mean loss in nats, or NaN when the gradient is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses, _ = supervised_losses(model, batch)
    loss = losses.mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, max_norm)
    if not torch.isfinite(norm):
        return math.nan
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def _diverged(step: int, loss: float, rate: float) -> Diverged:
    return Diverged(
        f"the loss or its gradient became {loss} at step {step} (learning rate {rate:.3g})",
        hint="lower training.learning_rate or raise training.warmup_ratio; "
        "with bfloat16, try training.dtype=float32",
    )


def _validate(model: Any, rows: list[Row], options: Training) -> dict[str, float]:
    """Mean loss on the validation rows, if there are any."""
    rows = [row for row in rows if row.supervised]
    if not rows:
        return {}
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in epoch_batches(rows, options, 0):
            losses, _ = supervised_losses(model, batch)
            total, count = total + float(losses.sum()), count + len(losses)
    model.train()
    return {"validation_loss": total / count}


def _snapshot(step: int, model: Any, optimizer: Any) -> Checkpoint:
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    return Checkpoint(step, adapter, optimizer.state_dict())


def _restore(folder: Path, model: Any, optimizer: Any) -> int:
    """Load the last checkpoint, if there is one; returns the steps done."""
    known = checkpoints(folder / "checkpoints")
    if not known:
        return _forget(folder)
    checkpoint = load_checkpoint(known[-1])
    set_peft_model_state_dict(model, checkpoint.adapter)
    optimizer.load_state_dict(checkpoint.optimizer)
    return checkpoint.step


def _forget(folder: Path) -> int:
    """Remove what an earlier run left; returns 0 steps done."""
    for name in ("checkpoints", "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    return 0


@contextmanager
def _metrics_file(path: Path, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Append to metrics.jsonl, after dropping steps that the checkpoint does not have."""
    kept = [entry for entry in read_metrics(path) if entry["step"] <= step]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    with path.open("a") as file:

        def write(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        yield write


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Entries of metrics.jsonl; a last line that a crash cut off is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


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
