"""The loss of an adapter on held-out examples, by transformers and peft alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.bases import Base


def heldout_loss(base: Base, adapter: Path, rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean nats a supervised token over the test rows, one at a time, in float32."""
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, adapter).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            if row["split"] != "test" or not row["supervised"]:
                continue
            ids, said = torch.tensor(row["ids"]), torch.tensor(row["supervised"])
            logprobs = adapted(ids[None]).logits[0, said - 1].log_softmax(-1)
            total -= float(logprobs.gather(1, ids[said, None]).sum())
            count += len(said)
    return total / count
