"""Training learns, resumes to the same digits, stops when asked, and says why it fails."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.errors import IncompatibleAdapter, InvalidInput
from finetune import train as train_module
from finetune.base_model import load_model
from finetune.batching import split_batch
from finetune.checkpoint import Interrupted, checkpoints, load_checkpoint
from finetune.data import Row
from finetune.divergence import Diverged
from finetune.forward import inner_model
from finetune.group import ALONE
from finetune.metrics_file import read_metrics
from finetune.objectives import Answers
from finetune.plan import Job
from finetune.quantization import check_quantization
from finetune.train import (
    Learner,
    _optimise,
    adapt_in_bfloat16,
    attach_lora,
    learning_rate,
    train,
)


def after(count: int) -> Callable[[], bool]:
    """Say stop at the count-th question."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= count


def losses(job: Job) -> list[float]:
    return [entry["loss"] for entry in read_metrics(job.folder / "metrics.jsonl")]


def adapter(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.folder / "adapter" / "adapter_model.safetensors")


def test_the_loss_falls(make_job: Callable[..., Job]) -> None:
    job = make_job(training={"epochs": 6, "learning_rate": 0.01})
    train(job)
    seen = losses(job)
    assert len(seen) == job.plan.steps >= 30
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def test_a_resumed_run_gives_the_same_losses_and_weights_to_the_last_digit(
    make_job: Callable[..., Job],
) -> None:
    options = {"epochs": 2, "learning_rate": 0.01, "checkpoint_every_steps": 4}
    parts = {"training": options, "lora": {"dropout": 0.1}}
    whole, parted = make_job("whole", **parts), make_job("parted", **parts)
    assert whole.plan.steps > 9

    train(whole)
    with pytest.raises(Interrupted) as stopped:
        train(parted, stop=after(3))
    assert stopped.value.step == 3
    with pytest.raises(Interrupted):
        train(parted, resume=True, stop=after(4))  # across a pass and a regular checkpoint
    train(parted, resume=True)

    assert losses(parted) == losses(whole)
    one, other = adapter(whole), adapter(parted)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(weight.abs().max() > 0 for name, weight in one.items() if "lora_B" in name)


def test_a_crash_between_checkpoints_repeats_the_lost_steps_only(
    make_job: Callable[..., Job],
) -> None:
    job = make_job(training={"checkpoint_every_steps": 2})

    class Crash(Exception):
        pass

    asked = 0

    def crash() -> bool:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise Crash
        return False

    with pytest.raises(Crash):
        train(job, stop=crash)
    with (job.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a line that the crash cut off
    train(job, resume=True)
    steps = [e["step"] for e in read_metrics(job.folder / "metrics.jsonl")]
    assert steps == list(range(1, job.plan.steps + 1))


def test_the_last_two_checkpoints_are_kept_and_hold_no_code(make_job: Callable[..., Job]) -> None:
    job = make_job(training={"checkpoint_every_steps": 1})
    train(job)
    kept = checkpoints(job.folder / "checkpoints")
    assert [load_checkpoint(path).step for path in kept] == [job.plan.steps - 1, job.plan.steps]

    (kept[-1] / "optimizer.pt").write_bytes(b"\x80\x02c__builtin__\neval\n(S'1'\ntR.")
    with pytest.raises(InvalidInput, match="can't be read"):
        load_checkpoint(kept[-1])


def test_without_resume_an_earlier_run_is_forgotten(make_job: Callable[..., Job]) -> None:
    job = make_job()
    with pytest.raises(Interrupted):
        train(job, stop=after(2))
    train(job)
    steps = [e["step"] for e in read_metrics(job.folder / "metrics.jsonl")]
    assert steps == list(range(1, job.plan.steps + 1))


def test_only_lora_on_the_chosen_modules_is_trained_and_saved(make_job: Callable[..., Job]) -> None:
    job = make_job(lora={"r": 4, "alpha": 8, "target_modules": ["v_proj", "q_proj"]})
    folder = train(job)
    config = json.loads((folder / "adapter_config.json").read_text())
    names = load_file(folder / "adapter_model.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert (config["r"], config["base_model_name_or_path"]) == (4, "tiny")
    assert len(names) == 2 * 2 * 2
    assert all(".q_proj.lora_" in name or ".v_proj.lora_" in name for name in names)


def test_a_loss_that_is_no_number_stops_with_the_reason(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune import objectives as module

    real = module.supervised_losses
    calls = 0

    def spoiled(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        found, owners = real(*arguments)
        return (found * math.nan if calls == 3 else found), owners

    monkeypatch.setattr(module, "supervised_losses", spoiled)
    job = make_job()
    with pytest.raises(Diverged, match=r"nan at step 3.*learning rate.*lower"):
        train(job)
    assert not (job.folder / "adapter").exists()


def test_unknown_target_modules_are_refused(make_job: Callable[..., Job]) -> None:
    with pytest.raises(IncompatibleAdapter, match="target_modules"):
        train(make_job(lora={"target_modules": ["nothing_like_it"]}))


def test_the_validation_loss_is_followed(make_job: Callable[..., Job], tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text('{"source": "one thing", "target": "une chose"}\n')
    job = make_job(data={"validation": str(path)}, training={"checkpoint_every_steps": 2})
    train(job)
    entries = read_metrics(job.folder / "metrics.jsonl")
    followed = [e["step"] for e in entries if "validation_loss" in e]
    assert followed == sorted({*range(2, job.plan.steps + 1, 2), job.plan.steps})


def test_max_steps_stops_early_with_a_whole_schedule(make_job: Callable[..., Job]) -> None:
    job = make_job(training={"max_steps": 2})
    train(job)
    assert len(losses(job)) == 2 == job.plan.steps


def test_the_learning_rate_warms_up_and_falls_to_zero(make_job: Callable[..., Job]) -> None:
    options = make_job(training={"warmup_ratio": 0.1, "learning_rate": 1.0}).recipe.training
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    cold = options.model_copy(update={"warmup_ratio": 0.0})
    assert learning_rate(0, 100, cold) == 1.0


def test_a_plan_counts_steps_and_tokens(make_job: Callable[..., Job]) -> None:
    job = make_job(training={"epochs": 2})
    train_rows = job.prepared.of("train")
    assert job.plan.tokens == 2 * sum(len(row.ids) for row in train_rows)
    assert job.plan.steps == 2 * job.plan.batches_per_epoch
    assert replace(job.plan, tokens=100, tokens_per_second=50.0).seconds == 2.0


def test_a_quantised_base_needs_a_gpu_and_bitsandbytes(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="needs a GPU"):
        make_job(training={"quantization": "nf4"})
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidInput, match="bitsandbytes, which is not installed") as caught:
        check_quantization("nf4", "cuda")
    assert "modiste[qlora]" in str(caught.value.hint)


def test_a_checkpoint_of_another_release_is_told(make_job: Callable[..., Job]) -> None:
    job = make_job(training={"checkpoint_every_steps": 2})
    with pytest.raises(Interrupted):
        train(job, stop=after(2))
    (path,) = (job.folder / "checkpoints").glob("*/optimizer.pt")
    state = torch.load(path, weights_only=True)
    whole = {**state["param_groups"][0], "params": list(range(len(state["state"])))}
    torch.save({**state, "param_groups": [whole]}, path)  # one group, as it was before LoRA+
    with pytest.raises(InvalidInput, match="another release"):
        train(job, resume=True)


def test_a_batch_in_parts_moves_the_weights_as_a_whole_one(make_job: Callable[..., Job]) -> None:
    job = make_job()
    rows = job.prepared.of("train")[:12]

    def stepped(parts: list[list[Row]]) -> tuple[float, list[torch.Tensor]]:
        learner = Learner.of(job, ALONE)
        weights = [p for p in learner.model.parameters() if p.requires_grad]
        torch.manual_seed(3)
        for weight in weights:
            torch.nn.init.normal_(weight, std=0.1)
        # plain descent: Adam makes whole steps of differences in the last digit
        plain = torch.optim.SGD([{"params": weights, "ratio": 1.0}], lr=0.0)
        unclipped = learner.options.model_copy(update={"max_grad_norm": math.inf})
        learner = replace(learner, optimizer=plain, options=unclipped)
        units = sum(map(learner.objective.units, rows))
        return _optimise(learner, parts, units, 1.0)["loss"], weights

    parts = split_batch(rows, Answers().width, 64)
    assert len(parts) > 2
    one, whole = stepped([rows])
    other, parted = stepped(parts)
    assert other == pytest.approx(one, rel=1e-5)
    for left, right in zip(parted, whole, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


def test_a_run_in_parts_takes_the_same_steps(make_job: Callable[..., Job]) -> None:
    options = {"epochs": 2, "learning_rate": 0.003, "batch_tokens": 512}
    whole = make_job("whole", training=options)
    parted = make_job("parted", training={**options, "micro_batch_tokens": 64})
    assert (whole.plan.micro_batch_tokens, parted.plan.micro_batch_tokens) == (None, 64)
    assert whole.plan.steps == parted.plan.steps

    train(whole)
    train(parted)

    assert losses(parted)[0] == pytest.approx(losses(whole)[0], rel=1e-5)
    assert losses(parted) == pytest.approx(losses(whole), rel=0.01)


def test_recomputed_activations_give_the_same_losses_and_are_really_recomputed(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = 0
    forward = LlamaMLP.forward

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(self, *arguments)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    options = {"learning_rate": 0.003, "max_steps": 4, "batch_tokens": 128}
    plain = make_job("plain", training=options)
    saving = make_job("saving", training={**options, "activation_checkpointing": "on"})
    assert (plain.plan.activation_checkpointing, saving.plan.activation_checkpointing) == (0, 1)

    train(plain)
    calls = 0
    train(saving)

    assert losses(saving) == pytest.approx(losses(plain), rel=1e-4)
    layers, checks = 2, 2  # the base's architecture is tried twice before training
    assert calls == layers * (checks + 2 * 4)


def test_beside_a_bfloat16_base_an_adapter_may_compute_in_bfloat16(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does on a GPU; here on the CPU."""
    options = {"learning_rate": 0.003, "dtype": "bfloat16", "epochs": 2}
    plain, ours = make_job("plain", training=options), make_job("ours", training=options)
    made = train_module._new_adapter

    def adapted(job: Job, row: Row) -> Any:
        model = made(job, row)
        adapt_in_bfloat16(model, "cpu")
        with torch.no_grad():
            layer = inner_model(model).layers[0].self_attn.q_proj
            layer.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
            layer.lora_B["default"].register_forward_hook(lambda _m, _i, b: seen.add(b.dtype))
        return model

    seen: set[torch.dtype] = set()
    train(plain)
    monkeypatch.setattr(train_module, "_new_adapter", adapted)
    train(ours)

    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in adapter(ours).values()} == {torch.float32}
    assert losses(ours)[-1] < losses(ours)[0]  # each step sees what the last one changed
    assert losses(ours) == pytest.approx(losses(plain), rel=0.02)


def test_rslora_scales_by_the_root_of_the_rank(make_job: Callable[..., Job]) -> None:
    job = make_job(lora={"r": 4, "alpha": 8, "use_rslora": True})
    wrapped = attach_lora(load_model(job.base.path, "float32", "cpu"), job.recipe, "tiny")
    layers = [module for module in wrapped.modules() if hasattr(module, "lora_A")]
    scales = {layer.scaling["default"] for layer in layers}
    assert scales == {8 / 4**0.5}

    config = json.loads((train(job) / "adapter_config.json").read_text())
    assert config["use_rslora"] is True


def test_lora_plus_moves_b_faster_than_a(make_job: Callable[..., Job]) -> None:
    parts = {"max_steps": 1, "warmup_ratio": 0, "learning_rate": 1e-3}
    plain = make_job("plain", training=parts)
    plus = make_job("plus", training={**parts, "loraplus_lr_ratio": 16})
    train(plain)
    train(plus)

    one, other = adapter(plain), adapter(plus)
    for name, weight in one.items():  # B begins at zero, and Adam's first step is the rate itself
        ratio = 16 if "lora_B" in name else 1
        torch.testing.assert_close(other[name], ratio * weight, rtol=1e-3, atol=1e-6)
    assert any(weight.abs().max() > 0 for name, weight in one.items() if "lora_B" in name)


def test_examples_without_anything_to_learn_are_an_error(make_job: Callable[..., Job]) -> None:
    with pytest.raises(InvalidInput, match="no training example has anything"):
        train(make_job(training={"max_length": 8}))
