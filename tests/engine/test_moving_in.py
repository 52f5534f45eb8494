"""The script of docs/moving-from-openai.md, whole; and OpenAI's client through all of the API."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serving import Running

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "moving-from-openai.md").read_text()
QUICKLY: dict[str, Any] = {
    "training.max_steps": 4, "training.batch_tokens": 256, "evaluation.max_generated": 2,
    "evaluation.max_new_tokens": 4,
}  # fmt: skip


def chats(count: int = 40) -> bytes:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Where is order {n}?"},
                {"role": "assistant", "content": f"Order {n} is on its way."},
            ]
        }
        for n in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def until_done(client: openai.OpenAI, id_: str, wait_s: float = 180) -> Any:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(id_)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise AssertionError(f"{job.status} after {wait_s} s")


@pytest.mark.timeout(300)
def test_the_script_of_the_guide_runs_whole(server: Running, tmp_path: Path) -> None:
    script = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0]
    assert "http://localhost:8321/v1" in script
    script = script.replace("http://localhost:8321", server.url)
    script = script.replace("smollm2-135m-instruct", server.base.name)
    (tmp_path / "training.jsonl").write_bytes(chats())
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Created fine-tuning job: ftjob-")
    assert any(re.match(r"Step 1/\d+: training loss=", line) for line in lines)
    made = next(line for line in lines if line.startswith("New fine-tuned model created: "))
    name = made.rpartition(" ")[2]
    assert re.fullmatch(rf"ft:{server.base.name}:default:support:[0-9a-f]{{8}}", name)
    assert len(lines) == len(set(lines))
    assert any(re.match(r"support@\d+ ", line) for line in lines)
    with pytest.raises(openai.NotFoundError):
        server.openai().models.retrieve(name)


@pytest.mark.timeout(300)
def test_a_finished_jobs_model_answers_within_a_second(server: Running) -> None:
    client = server.openai()
    training = client.files.create(file=("chats.jsonl", chats()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=server.base.name, training_file=training.id, suffix="quick", seed=5,
        extra_body={"method": {"type": "supervised", "modiste": {"settings": QUICKLY}}},
    )  # fmt: skip
    job = until_done(client, job.id)
    ended = time.monotonic()
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model in {model.id for model in client.models.list()}
    answer = client.chat.completions.with_raw_response.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )
    took = time.monotonic() - ended
    assert answer.headers["x-modiste-receipt"].endswith("proof=proved")
    assert took < 5.0, took  # bench-platform claims one second, on a quiet machine
    model = client.models.retrieve(job.fine_tuned_model)
    assert (model.id, model.object) == (job.fine_tuned_model, "model")
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        told = client.chat.completions.create(
            model=checkpoint.fine_tuned_model_checkpoint, max_tokens=2,
            messages=[{"role": "user", "content": "hi"}],
        )  # fmt: skip
        assert told.choices
    (result,) = job.result_files
    assert client.files.content(result).text.startswith("step,train_loss")
    assert client.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(
            model=job.fine_tuned_model, messages=[{"role": "user", "content": "hi"}]
        )
    with pytest.raises(openai.NotFoundError):
        client.models.delete(job.fine_tuned_model)
    assert job.fine_tuned_model not in {model.id for model in client.models.list()}


def test_an_exported_file_is_checked_without_a_server(server: Running, tmp_path: Path) -> None:
    assert "modiste finetune check generate --set data.train=training.jsonl" in GUIDE
    (tmp_path / "training.jsonl").write_bytes(chats())
    done = subprocess.run(
        [
            sys.executable, "-m", "service.cli", "finetune", "check", "generate",
            "--set", "data.train=training.jsonl", "--home", str(server.registry.home.root),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "39 training examples, 1 held out" in done.stdout
