"""OpenAI's models through the official client: what is listed, and what is taken out of use."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from service.jobs.queue import Jobs, Order
from service.jobs.states import (
    SUCCEEDED,
    Outcome,
)
from tests.service.desk import Desk, desk
from tests.service.workbench import Bench, run

CHAT = (
    b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
)


@pytest.fixture
def bench(tmp_path: Path, database: str) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def served(bench: Bench) -> Iterator[Desk]:
    with desk(bench.registry.home.root, bench.models) as served:
        yield served


@pytest.fixture
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


def made_by_a_job(bench: Bench, value: float, name: str = "x", project: str = "ours") -> str:
    """The name of a model that a job told of."""
    bench.work /= "next"
    model = bench.registry.find(bench.publish(value, name, project=project)).fine_tuned_model
    jobs = Jobs(bench.registry.database)
    order = Order(
        project=project, caller="c", model="b", training_file="f", validation_file=None,
        suffix=name, seed=1, method={"type": "supervised", "supervised": {"hyperparameters": {}}},
        metadata=None, trainer={},
    )  # fmt: skip
    jobs.create(order)
    job = jobs.lease("w")
    assert job is not None
    jobs.end(job.id, "w", Outcome(SUCCEEDED, model=model))
    return model


def listed(client: openai.OpenAI) -> list[str]:
    return [model.id for model in client.models.list()]


def test_models_that_jobs_made_are_listed_to_their_project(
    bench: Bench, served: Desk, client: openai.OpenAI
) -> None:
    first, second = made_by_a_job(bench, 1), made_by_a_job(bench, 2)
    theirs = made_by_a_job(bench, 3, "y", "theirs")
    bench.publish(4, project="ours")  # by no job

    assert listed(client) == ["b", second, first]
    assert listed(served.openai("theirs")) == ["b", theirs]
    model = next(model for model in client.models.list() if model.id == first)
    version = bench.registry.find(first)
    assert (model.object, model.owned_by) == ("model", "ours")
    assert model.created == int(version.manifest.created.timestamp())
    assert model.model_extra == {
        "root": "x@1", "parent": "b", "digest": version.digest, "task": "generate"
    }  # fmt: skip
    assert client.models.retrieve(first) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(theirs)


def test_equal_content_of_two_jobs_is_listed_once(bench: Bench, client: openai.OpenAI) -> None:
    assert made_by_a_job(bench, 1) == (again := made_by_a_job(bench, 1))
    assert listed(client) == ["b", again]


def test_a_name_by_hand_has_the_same_card_as_in_the_list(
    bench: Bench, client: openai.OpenAI
) -> None:
    name = bench.registry.find(bench.publish(1, project="ours")).fine_tuned_model
    card = client.models.retrieve(name)
    assert (card.owned_by, card.model_extra["parent"]) == ("ours", "b")  # type: ignore[index]
    assert listed(client) == ["b"]


def test_a_deleted_model_is_gone_and_its_job_still_tells_it(
    bench: Bench, client: openai.OpenAI
) -> None:
    model, other = made_by_a_job(bench, 1), made_by_a_job(bench, 2)
    assert client.models.retrieve(model).id == model

    deleted = client.models.delete(model)

    assert (deleted.id, deleted.object, deleted.deleted) == (model, "model", True)
    for ask in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(model)
        assert caught.value.code == "model_not_found"
    assert listed(client) == ["b", other]
    jobs = client.fine_tuning.jobs.list().data
    assert [job.fine_tuned_model for job in jobs] == [other, model]
    file = client.files.create(file=("a.jsonl", CHAT), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=model, training_file=file)
    assert refused.value.code == "model_not_found"
    history = bench.registry.alias_history("x")[-1]
    assert (history.retired, history.who.startswith("key_")) == (True, True)


def test_a_model_in_use_is_refused_and_says_what_to_do(bench: Bench, client: openai.OpenAI) -> None:
    model = made_by_a_job(bench, 1)
    bench.registry.promote(model)
    run(bench.models.catch_up)
    with pytest.raises(openai.ConflictError, match="x@production points at it") as caught:
        client.models.delete(model)
    assert caught.value.code == "model_in_use"
    assert "move the alias first" in caught.value.body["hint"]  # type: ignore[index]
    assert listed(client) == ["b", "x", model]


def test_what_is_no_version_of_the_project_can_not_be_deleted(
    bench: Bench, client: openai.OpenAI
) -> None:
    theirs = made_by_a_job(bench, 1, "y", "theirs")
    bench.publish(2, project="ours")
    bench.registry.promote("x@1", "staging")
    for name in (theirs, "y@1", "ft:b:ours:nobody:00000000", "x@9", "No Name"):
        with pytest.raises(openai.NotFoundError):
            client.models.delete(name)
    for name in ("b", "x", "x@staging"):
        with pytest.raises(openai.BadRequestError, match="not a version"):
            client.models.delete(name)
    assert bench.registry.find(theirs).state == "ready"
