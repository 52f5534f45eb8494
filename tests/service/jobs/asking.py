"""Jobs of the tiny base, asked for and watched with the OpenAI client."""

import time
from typing import Any

import openai

LINES = b"".join(
    b'{"messages": [{"role": "user", "content": "say %d"}, '
    b'{"role": "assistant", "content": "the file %d is open"}]}\n' % (n, n)
    for n in range(60)
)
DONE = ("succeeded", "failed", "cancelled")
WAIT_S = 120


def create(client: openai.OpenAI, training: str, steps: int = 6, **more: Any) -> Any:
    settings = {
        "training.max_steps": steps, "training.epochs": 100, "training.batch_tokens": 128,
        "training.learning_rate": 0.01, "training.checkpoint_every_steps": 2,
        "evaluation.max_generated": 2, "evaluation.max_new_tokens": 4,
    } | more.pop("settings", {})  # fmt: skip
    method = {"type": "supervised", "modiste": {"settings": settings, **more.pop("modiste", {})}}
    model = client.fine_tuning.jobs.list(limit=1)  # the server is there
    assert model.object == "list"
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=training, extra_body={"method": method}, **more
    )


def until(client: openai.OpenAI, id_: str, *statuses: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(id_)
        if job.status in (*statuses, *DONE):
            return job
        time.sleep(0.1)
    raise AssertionError(f"{id_} is {job.status} after {WAIT_S} s")


def events(client: openai.OpenAI, id_: str) -> list[Any]:
    return list(client.fine_tuning.jobs.list_events(id_, limit=100))[::-1]


def steps_told(client: openai.OpenAI, id_: str) -> list[int]:
    return [event.data["step"] for event in events(client, id_) if event.type == "metrics"]
