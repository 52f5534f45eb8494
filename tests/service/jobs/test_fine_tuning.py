"""OpenAI's fine-tuning jobs, through the official client; no worker is there."""

import json
from typing import Any

import openai
import pytest

from service.jobs.queue import Jobs
from service.jobs.states import (
    Outcome,
    Told,
)
from tests.service.desk import Desk

CHAT = (
    b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
)


@pytest.fixture
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


@pytest.fixture(scope="module")
def base(served: Desk) -> str:
    return served.registry.base().name


@pytest.fixture(scope="module")
def training(served: Desk) -> str:
    made = served.openai().files.create(file=("a.jsonl", CHAT * 20), purpose="fine-tune")
    return made.id


def test_a_job_tells_what_was_asked_for(client: openai.OpenAI, base: str, training: str) -> None:
    job = client.fine_tuning.jobs.create(
        model=base, training_file=training, validation_file=training, suffix="my-suffix", seed=7,
        metadata={"team": "a"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}},
        },
    )  # fmt: skip
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", base, 7)
    assert (job.training_file, job.validation_file) == (training, training)
    assert (job.fine_tuned_model, job.finished_at, job.result_files) == (None, None, [])
    assert (job.organization_id, job.metadata) == ("ours", {"team": "a"})
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.learning_rate_multiplier == "auto"
    assert job.method is not None
    assert job.method.supervised is not None
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    (event,) = client.fine_tuning.jobs.list_events(job.id).data
    assert (event.level, event.type, job.id in event.message) == ("info", "message", True)
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []
    listed = client.fine_tuning.jobs.list(metadata={"team": "a"})
    assert [one.id for one in listed] == [job.id]
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_the_older_hyperparameters_and_a_missing_seed(
    client: openai.OpenAI, base: str, training: str
) -> None:
    job = client.fine_tuning.jobs.create(
        model=base, training_file=training, hyperparameters={"n_epochs": 3}
    )
    assert job.hyperparameters.n_epochs == 3
    assert job.seed >= 0
    client.fine_tuning.jobs.cancel(job.id)


def test_dpo_has_its_beta(client: openai.OpenAI, base: str, training: str) -> None:
    job = client.fine_tuning.jobs.create(
        model=base, training_file=training,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}},
    )  # fmt: skip
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2
    client.fine_tuning.jobs.cancel(job.id)


def test_pages_of_jobs_and_events(client: openai.OpenAI, served: Desk, base: str) -> None:
    theirs = served.openai("theirs")
    file = theirs.files.create(file=("a.jsonl", CHAT), purpose="fine-tune").id
    ids = [theirs.fine_tuning.jobs.create(model=base, training_file=file).id for _ in range(5)]
    assert [job.id for job in theirs.fine_tuning.jobs.list(limit=2)] == ids[::-1]
    for ask in (
        client.fine_tuning.jobs.retrieve,
        client.fine_tuning.jobs.cancel,
        client.fine_tuning.jobs.list_events,
        client.fine_tuning.jobs.checkpoints.list,
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(ids[0])
        assert caught.value.code == "fine_tuning_job_not_found"
    with pytest.raises(openai.ConflictError, match=r"used by fine-tuning job ftjob-"):
        theirs.files.delete(file)
    for id_ in ids:
        theirs.fine_tuning.jobs.cancel(id_)
    theirs.files.delete(file)


def test_what_workers_tell_is_seen(
    client: openai.OpenAI, served: Desk, base: str, training: str
) -> None:
    from service.jobs.queue import Jobs

    job = client.fine_tuning.jobs.create(model=base, training_file=training)
    jobs = Jobs(served.registry.database)
    leased = jobs.lease("w")
    assert leased is not None
    assert leased.id == job.id
    told = Told("step-1", "Step 1/2", type="metrics", data={"step": 1, "train_loss": 1.5})
    jobs.tell(job.id, "w", [told], running=True, trained_tokens=5)
    jobs.add_checkpoint(job.id, "w", 1, "ft:x:ckpt-step-1", {"step": 1, "train_loss": 1.5})
    jobs.add_checkpoint(job.id, "w", 1, "ft:x:ckpt-step-1", {"step": 1, "train_loss": 1.5})
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    metrics = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    assert (metrics.type, metrics.data) == ("metrics", {"step": 1, "train_loss": 1.5})
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (1, 1.5)
    assert checkpoint.fine_tuned_model_checkpoint == "ft:x:ckpt-step-1"
    error = {"code": "c", "message": "m", "param": "training_file"}
    jobs.end(job.id, "w", Outcome("failed", error=error))
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.param) == (
        "failed", "c", "training_file",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "param", "says"),
    [
        ({"model": "gpt-4o"}, "model", "neither"),
        ({"model": "ft:x"}, "model", "neither"),
        ({"training_file": "file-nowhere"}, "training_file", "no file"),
        ({"validation_file": "file-nowhere"}, "validation_file", "no file"),
        ({"suffix": "x" * 65}, "suffix", "64"),
        ({"suffix": "???"}, "suffix", "not a valid name"),
        ({"seed": -1}, "seed", "greater"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "from 1 to 50"),
        ({"method": {"type": "reinforcement"}}, "method.type", "supervised"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method", "type is dpo"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "512"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "not"),
        ({"extra_body": {"n_epochs": 3}}, "n_epochs", "xtra"),
        (
            {"extra_body": {"method": {"type": "dpo", "modiste": {"settings": {"name": "x"}}}}},
            "method.modiste.settings.name", "can't be set",
        ),
        (
            {"extra_body": {"method": {"type": "dpo", "modiste": {"settings": {
                "training.report_to": "mlflow"}}}}},
            "method.modiste.settings.training.report_to", "can't be set",
        ),
    ],
)  # fmt: skip
def test_a_job_that_can_not_be_done_is_refused(
    client: openai.OpenAI, base: str, training: str, wrong: dict[str, Any], param: str, says: str
) -> None:
    before = len(client.fine_tuning.jobs.list(limit=100).data)
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client.fine_tuning.jobs.create(**({"model": base, "training_file": training} | wrong))
    assert str(caught.value.param).startswith(param)
    assert len(client.fine_tuning.jobs.list(limit=100).data) == before


def test_a_file_for_another_purpose_is_refused(client: openai.OpenAI, base: str) -> None:
    file = client.files.create(file=("b.jsonl", b"{}\n"), purpose="batch").id
    with pytest.raises(openai.BadRequestError, match="purpose batch") as caught:
        client.fine_tuning.jobs.create(model=base, training_file=file)
    assert (caught.value.param, caught.value.code) == ("training_file", "wrong_purpose")


ATTACKS: list[dict[str, Any]] = [
    {"data": {"test": "/etc/passwd"}},
    {"data": {"train": "s3://bucket/*"}},
    {"data.validation": "https://example.org/x.jsonl"},
    {"data.test": ["/etc/passwd"]},
    {"data.test=/etc/passwd #": 1},
    {"data": "/etc/passwd"},
    {"data.columns": {"prompt": {"deep": {"deeper": "x"}}}},
    {"evaluation": {"asserts": "asserts"}},
    {"evaluation.on_server": True},
    {"evaluation.pattern": "(a|a)*b"},
    {"training": {"report_to": "mlflow"}},
    {"training": {"seed": 3}},
    {"sweep.over": {"lora.r": "1..9"}},
    {"base": "other"},
    {"parent": "x@sha256:" + "0" * 64},
    {"project": "theirs"},
    {"training": {"\0": 1}},
    {"training.\ud800": 1},
    {"training.max_length": 2**53 + 1},
    {"training.max_length": float("inf")},
    {"prompt.system": "a\0b"},
    {"prompt.system": "\ud800"},
    {"prompt.system": "x" * 20_001},
    {"data.labels": ["x"] * 257},
    {"data.labels": [[["x"]]]},
    {f"data.columns.c{n}": "x" * 1500 for n in range(50)},
]


@pytest.mark.parametrize("settings", ATTACKS, ids=lambda s: ascii(s)[:50])
@pytest.mark.parametrize("recipe", [None, "classify"])
def test_settings_that_are_not_a_callers_are_refused(
    served: Desk, base: str, training: str, settings: dict[str, Any], recipe: str | None
) -> None:
    method = {"type": "supervised", "modiste": {"settings": settings, "recipe": recipe}}
    body = {"model": base, "training_file": training, "method": method}
    with served.http() as http:
        answer = http.post(
            "/v1/fine_tuning/jobs", content=json.dumps(body),
            headers={"content-type": "application/json"},
        )  # fmt: skip
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith("method.modiste.settings")
    assert error["hint"] or error["code"] == "invalid_json"


def test_a_recipe_that_runs_what_a_file_says_is_refused(
    client: openai.OpenAI, base: str, training: str
) -> None:
    for recipe in ("code", "/etc/passwd", "../x"):
        method = {"type": "supervised", "modiste": {"recipe": recipe}}
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.create(
                model=base, training_file=training, extra_body={"method": method}
            )
        assert caught.value.param == "method.modiste.recipe"


def test_settings_come_in_sections_or_by_dotted_names(
    served: Desk, client: openai.OpenAI, base: str, training: str
) -> None:
    settings = {
        "training": {"epochs": 2, "batch_tokens": 512}, "lora.r": 4,
        "data.columns": {"prompt": "q"}, "prompt.system": "Be short. 🙂",
        "gate": {"metric": "loss", "keep": [{"metric": "rouge_l", "margin": 0.1}]},
    }  # fmt: skip
    method = {"type": "supervised", "modiste": {"settings": settings}}
    job = client.fine_tuning.jobs.create(
        model=base, training_file=training, suffix="My  Model (v2)", seed=7,
        extra_body={"method": method},
    )  # fmt: skip
    row = Jobs(served.registry.database).find(job.id, "ours")
    assert row.order["settings"] == {
        "training.epochs": 2, "training.batch_tokens": 512, "lora.r": 4,
        "data.columns.prompt": "q", "prompt.system": "Be short. 🙂", "gate.metric": "loss",
        "gate.keep": [{"metric": "rouge_l", "margin": 0.1}],
        "task": "generate", "training.seed": 7, "training.method": "supervised",
    }  # fmt: skip
    assert row.suffix == "my-model-v2"
    client.fine_tuning.jobs.cancel(job.id)
