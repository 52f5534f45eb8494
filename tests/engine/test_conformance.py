"""OpenAI's official client, method by method, against a real server with its own worker."""

import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.engine.test_moving_in import QUICKLY, chats, until_done
from tests.serving import Running

CHAT: list[Any] = [{"role": "user", "content": "save the file"}]
LONG = QUICKLY | {"training.max_steps": 5000, "training.epochs": 1000}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module")
def training(client: openai.OpenAI) -> str:
    return client.files.create(file=("chats.jsonl", chats()), purpose="fine-tune").id


def until(ask: Callable[[], Any], done: Callable[[Any], bool], wait_s: float = 120) -> Any:
    deadline = time.monotonic() + wait_s
    while not done(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def ask_for(client: openai.OpenAI, training: str, settings: dict[str, Any], **more: Any) -> Any:
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=training, **more,
        extra_body={"method": {"type": "supervised", "modiste": {"settings": settings}}},
    )  # fmt: skip


def test_files(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("a.jsonl", b'{"a": 1}\n'), purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    assert made.expires_at == made.created_at + 3600
    assert client.files.retrieve(made.id) == made
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.content(made.id).read() == b'{"a": 1}\n'
    assert made.id in {file.id for file in client.files.list(purpose="batch", limit=1)}
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_uploads(client: openai.OpenAI) -> None:
    content = chats()
    parts = content[:1000], content[1000:]
    upload = client.uploads.create(
        bytes=len(content), filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    ids = [client.uploads.parts.create(upload.id, data=io.BytesIO(part)).id for part in parts]
    done = client.uploads.complete(upload.id, part_ids=ids)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == content
    other = client.uploads.create(
        bytes=9, filename="b.jsonl", mime_type="text/jsonl", purpose="batch"
    )
    assert client.uploads.cancel(other.id).status == "cancelled"
    chunked = client.uploads.upload_file_chunked(
        file=content, filename="c.jsonl", bytes=len(content), mime_type="text/jsonl",
        purpose="fine-tune",
    )  # fmt: skip
    assert chunked.status == "completed"


@pytest.mark.timeout(400)
def test_fine_tuning_jobs(client: openai.OpenAI, training: str) -> None:
    jobs = client.fine_tuning.jobs
    job = ask_for(client, training, LONG, suffix="long", metadata={"team": "a"}, seed=3)
    assert jobs.retrieve(job.id).seed == 3
    assert [one.id for one in jobs.list(metadata={"team": "a"})] == [job.id]
    until(lambda: jobs.retrieve(job.id), lambda found: (found.trained_tokens or 0) > 0)
    assert jobs.pause(job.id).id == job.id
    paused = until(lambda: jobs.retrieve(job.id), lambda found: found.status == "paused")
    waiting = ask_for(client, training, LONG)
    assert jobs.cancel(waiting.id).status in ("cancelled", "queued", "validating_files")
    assert jobs.resume(job.id).status == "queued"
    until(
        lambda: jobs.retrieve(job.id),
        lambda found: (found.trained_tokens or 0) > (paused.trained_tokens or 0),
    )
    jobs.cancel(job.id)
    assert until_done(client, job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as error:
        jobs.cancel(job.id)
    assert error.value.code == "wrong_status"
    pages = [event for event in jobs.list_events(job.id, limit=2)]  # noqa: C416 - it pages
    assert len({event.id for event in pages}) == len(pages) > 4
    assert jobs.checkpoints.list(job.id).data == []
    assert client.files.retrieve(training).id == training


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_tunes_what_another_made_and_checkpoints_answer(
    client: openai.OpenAI, training: str
) -> None:
    settings = {**QUICKLY, "training.max_steps": 9, "training.epochs": 3,
                "training.batch_tokens": 700}  # fmt: skip
    first = until_done(client, ask_for(client, training, settings, suffix="first").id)
    assert first.status == "succeeded", first.error
    checkpoints = client.fine_tuning.jobs.checkpoints.list(first.id).data
    assert checkpoints[0].fine_tuned_model_checkpoint == first.fine_tuned_model
    assert len(checkpoints) == 3
    for checkpoint in checkpoints:
        answer = client.chat.completions.create(
            model=checkpoint.fine_tuned_model_checkpoint, messages=CHAT, max_tokens=2
        )
        assert answer.choices[0].message.role == "assistant"
    second = client.fine_tuning.jobs.create(
        model=first.fine_tuned_model, training_file=training, validation_file=training_of(client)
    )
    second = until_done(client, second.id)
    assert second.status == "succeeded", second.error
    assert second.fine_tuned_model not in (None, first.fine_tuned_model)


def training_of(client: openai.OpenAI) -> str:
    """Another file, for validation."""
    lines = [
        {"messages": [{"role": "user", "content": f"Who sent parcel {n}?"},
                      {"role": "assistant", "content": f"Parcel {n} came from us."}]}
        for n in range(12)
    ]  # fmt: skip
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return client.files.create(file=("v.jsonl", content), purpose="fine-tune").id


def test_what_is_wrong_raises_the_clients_own_exceptions(
    client: openai.OpenAI, training: str
) -> None:
    broken = client.files.create(file=("b.jsonl", b'{"text": "x"}\n'), purpose="fine-tune").id
    job = until_done(client, ask_for(client, broken, QUICKLY).id)
    assert (job.status, job.error.param) == ("failed", "training_file")
    assert job.error.message
    jobs = client.fine_tuning.jobs
    wrong: list[tuple[type[openai.APIStatusError], Callable[[], Any]]] = [
        (openai.BadRequestError, lambda: jobs.create(model="none", training_file=training)),
        (openai.BadRequestError, lambda: jobs.create(model="tiny", training_file="file-none")),
        (openai.BadRequestError, lambda: jobs.create(
            model="tiny", training_file=training, suffix="s" * 65)),
        (openai.BadRequestError, lambda: jobs.create(
            model="tiny", training_file=training, hyperparameters={"n_epochs": 0})),
        (openai.NotFoundError, lambda: jobs.retrieve("ftjob-none")),
        (openai.BadRequestError, lambda: jobs.list(after="ftjob-none").data),
        (openai.NotFoundError, lambda: client.models.retrieve("ft:tiny:default:none:12345678")),
        (openai.NotFoundError, lambda: client.batches.retrieve("batch_none")),
        (openai.NotFoundError, lambda: client.files.content("file-none")),
    ]  # fmt: skip
    for kind, ask in wrong:
        with pytest.raises(kind) as error:
            ask()
        assert error.value.code, error.value
        assert error.value.message
