"""Training on a GPU: it learns, and its memory is what was told."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from finetune import trial
from finetune.metrics_file import read_metrics
from finetune.plan import Job
from finetune.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_falls(make_job: Callable[..., Job], dtype: str) -> None:
    job = make_job(training={"epochs": 6, "learning_rate": 0.01, "dtype": dtype})
    assert (job.plan.device, job.plan.dtype) == ("cuda", dtype)
    torch.cuda.reset_peak_memory_stats()
    folder = train(job)
    seen = [entry["loss"] for entry in read_metrics(job.folder / "metrics.jsonl")]
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])
    assert trial.peak_bytes("cuda") > 0
    weights = load_file(folder / "adapter_model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.float32}
