"""TRL's SFTTrainer at its defaults, on the token ids that `modiste finetune prepare` made.

`python -m bench.trl_peer ORDER.json` trains one adapter. The order names the run's folder, the
base, the LoRA and what a fair comparison has to fix: precision, examples a step, steps, the
learning rate and its schedule. All else is TRL's.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Order:
    """One training."""

    prepared: str
    """The folder that has `prepared.jsonl`."""
    base: str
    """The base model's folder."""
    out: str
    """Where the adapter and `times.json`, when each step ended, are written."""
    rank: int
    alpha: float
    target_modules: list[str]
    examples: int
    """A step."""
    options: dict[str, Any]
    """Of SFTConfig: steps or epochs, the learning rate and its schedule."""

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


def train(order: Order) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from finetune.plan import cores

    torch.set_num_threads(cores())
    rows = [json.loads(line) for line in (Path(order.prepared) / "prepared.jsonl").open()]
    given = [_labelled(row) for row in rows if row["split"] == "train" and row["supervised"]]
    ended: list[float] = []

    class Timer(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.time())

    config = SFTConfig(
        output_dir=order.out, use_cpu=not torch.cuda.is_available(), bf16=False,
        per_device_train_batch_size=order.examples, model_init_kwargs={"dtype": "float32"},
        report_to="none", save_strategy="no",
        disable_tqdm=True, **order.options,
    )  # fmt: skip
    lora = LoraConfig(
        r=order.rank, lora_alpha=order.alpha, target_modules=order.target_modules,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=order.base, args=config, train_dataset=Dataset.from_list(given), peft_config=lora,
        processing_class=AutoTokenizer.from_pretrained(order.base), callbacks=[Timer()],
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(order.out)
    (Path(order.out) / "times.json").write_text(json.dumps(ended))


def _labelled(row: dict[str, Any]) -> dict[str, list[int]]:
    said = set(row["supervised"])
    return {
        "input_ids": row["ids"],
        "labels": [token if at in said else -100 for at, token in enumerate(row["ids"])],
    }


if __name__ == "__main__":
    train(Order(**json.loads(Path(sys.argv[1]).read_text())))
