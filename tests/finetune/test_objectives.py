"""Preference tuning computes what its paper says, on pairs that share a prompt."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from adapters.bases import Base
from finetune.base_model import load_model
from finetune.data import Row
from finetune.metrics_file import read_metrics
from finetune.objectives import Answers, Preferences, dpo_losses
from finetune.plan import Job
from finetune.train import attach_lora, train

BETA = 0.3


@pytest.fixture
def job(make_preference_job: Callable[..., Job]) -> Job:
    return make_preference_job(training={"beta": BETA})


@pytest.fixture
def model(base: Base, job: Job) -> Any:
    """The tiny base with a LoRA that has an effect."""
    torch.manual_seed(1)
    wrapped = attach_lora(load_model(base.path, "float32", "cpu"), job.recipe, "tiny")
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    return wrapped


def plain_logprob(model: Any, ids: list[int], said: list[int]) -> torch.Tensor:
    """Log-probability of some tokens, from all logits of one sequence alone."""
    logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([logprobs[position - 1, ids[position]] for position in said]).sum()


def losses_by_hand(model: Any, base: Base, rows: list[Row]) -> torch.Tensor:
    """trl's `sigmoid` loss, its names included, one answer at a time."""
    reference = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    found = []
    for row in rows:
        chosen_logps = plain_logprob(model, row.ids, row.supervised)
        rejected_logps = plain_logprob(model, row.rejected_ids, row.rejected_supervised)
        with torch.no_grad():
            ref_chosen_logps = plain_logprob(reference, row.ids, row.supervised)
            ref_rejected_logps = plain_logprob(reference, row.rejected_ids, row.rejected_supervised)
        chosen_logratios = chosen_logps - ref_chosen_logps
        rejected_logratios = rejected_logps - ref_rejected_logps
        found.append(-logsigmoid(BETA * (chosen_logratios - rejected_logratios)))
    return torch.stack(found)


def test_losses_and_gradients_equal_those_computed_one_answer_at_a_time(
    model: Any, base: Base, job: Job
) -> None:
    rows = job.prepared.of("train")[:5]
    weights = [p for p in model.parameters() if p.requires_grad]

    ours = Preferences(BETA).losses(model, rows)
    gradients = torch.autograd.grad(ours.values.mean(), weights)
    byhand = losses_by_hand(model, base, rows)
    expected = torch.autograd.grad(byhand.mean(), weights)

    torch.testing.assert_close(ours.values, byhand, rtol=1e-4, atol=1e-5)
    assert (byhand - math.log(2)).abs().min() > 1e-3  # the adapter matters in every pair
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected)


def test_the_loss_of_known_probabilities_is_the_papers() -> None:
    policy = torch.tensor([[-3.0, -10.0], [-5.0, -4.0]])  # preferred, then the others
    reference = torch.tensor([[-4.0, -8.0], [-4.0, -8.0]])
    values, margins = dpo_losses(policy, reference, 0.5)
    assert margins.tolist() == pytest.approx([0.5 * 2.0, 0.5 * -6.0])
    assert values.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(3))])


def test_an_adapter_without_effect_has_a_loss_of_ln_2_to_the_last_digit(
    base: Base, job: Job
) -> None:
    fresh = attach_lora(load_model(base.path, "float32", "cpu"), job.recipe, "tiny")
    found = Preferences(BETA).losses(fresh, job.prepared.of("train")[:7])
    assert found.values.tolist() == [torch.tensor(2.0).log().item()] * 7
    assert found.figures["reward_margin"].tolist() == [0.0] * 7


def test_only_the_two_answers_are_learned(job: Job, renderer: Any) -> None:
    row = job.prepared.of("train")[0]
    for ids, said in (
        (row.ids, row.supervised), (row.rejected_ids, row.rejected_supervised),
    ):  # fmt: skip
        assert ids[: len(row.prompt_ids)] == row.prompt_ids
        assert said == list(range(len(row.prompt_ids), len(ids)))
    assert row.ids[row.supervised[0] :] == renderer.completion_ids(row.references[0])
    assert row.rejected_ids[row.supervised[0] :] == renderer.completion_ids(row.input["rejected"])


def test_preference_tuning_learns_which_answer_is_preferred(
    make_preference_job: Callable[..., Job],
) -> None:
    job = make_preference_job(training={"epochs": 8, "learning_rate": 0.005})
    train(job)
    entries = read_metrics(job.folder / "metrics.jsonl")
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    last = entries[-5:]
    assert sum(e["loss"] for e in last) / 5 < 0.3
    assert all(e["reward_accuracy"] == 1.0 for e in last)
    assert last[-1]["reward_margin"] > 1.0


def test_parts_and_recomputed_activations_give_the_same_losses_here_too(
    make_preference_job: Callable[..., Job],
) -> None:
    options = {"learning_rate": 0.003, "max_steps": 4}
    whole = make_preference_job("whole", training=options)
    saving = {"micro_batch_tokens": 128, "activation_checkpointing": "on"}
    parted = make_preference_job("parted", training={**options, **saving})
    train(whole)
    train(parted)
    one, other = (read_metrics(job.folder / "metrics.jsonl") for job in (whole, parted))
    for name in ("loss", "reward_margin", "reward_accuracy"):
        expected = [entry[name] for entry in one]
        assert [e[name] for e in other] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_pairs_that_are_equal_once_cut_are_not_used(make_row: Callable[..., Row]) -> None:
    pair = {"rejected_ids": [1, 2, 4], "rejected_supervised": [2]}
    assert Preferences(0.1).usable(make_row([1, 2, 3], [2], **pair))
    assert not Preferences(0.1).usable(make_row([1, 2, 4], [2], **pair))
    assert not Preferences(0.1).usable(make_row([1, 2, 3], [2]))
    assert Answers().usable(make_row([1, 2, 3], [2]))


def test_a_pair_takes_the_room_of_its_longer_answer_twice(make_row: Callable[..., Row]) -> None:
    row = make_row([1, 2, 3], [2], rejected_ids=[1, 2, 4, 5, 6], rejected_supervised=[2, 3, 4])
    assert Preferences(0.1).width(row) == 10
    assert Preferences(0.1).tokens(row) == 8
