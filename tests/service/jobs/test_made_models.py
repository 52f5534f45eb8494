"""What a job of a real worker leaves: versions, checkpoints, figures."""

from typing import Any

import openai

from tests.made import Recipe, publish
from tests.service.desk import Desk
from tests.service.jobs.asking import LINES, create, events, until


def test_a_job_has_a_checkpoint_for_each_of_its_last_epochs(
    client: openai.OpenAI, served: Desk, training: str, start_worker: Any
) -> None:
    settings = {"training.max_steps": None, "training.epochs": 3, "training.batch_tokens": 2048}
    start_worker()
    jobs = []
    for _ in range(2):  # the second makes equal content
        job = create(client, training, suffix="keeper", seed=7, settings=settings)
        jobs.append(until(client, job.id))
        assert jobs[-1].status == "succeeded", jobs[-1].error
    first, second = (client.fine_tuning.jobs.checkpoints.list(job.id).data for job in jobs)

    steps = [kept.step_number for kept in first]
    each = steps[0] // 3
    assert steps == [3 * each, 2 * each, each]
    names = [kept.fine_tuned_model_checkpoint for kept in first]
    assert names[0] == jobs[0].fine_tuned_model
    assert [name.rpartition(":")[2] for name in names[1:]] == [
        f"ckpt-step-{step}" for step in steps[1:]
    ]
    assert [kept.fine_tuning_job_id for kept in first] == [jobs[0].id] * 3
    for kept in first:
        assert kept.metrics.step == kept.step_number
        assert kept.metrics.train_loss is not None
        assert kept.metrics.train_mean_token_accuracy is None
    versions = [served.registry.find(name) for name in names]
    assert len({version.digest for version in versions}) == 3
    assert versions[0].number == len(served.registry.versions("keeper")) == 3

    assert [kept.fine_tuned_model_checkpoint for kept in second] == names
    assert {kept.id for kept in second}.isdisjoint(kept.id for kept in first)
    page = client.fine_tuning.jobs.checkpoints.list(jobs[0].id, limit=1)
    assert [kept.id for kept in page] == [kept.id for kept in first]


def test_what_the_caller_says_of_validation_checkpoints_and_the_name_is_kept_to(
    served: Desk, start_worker: Any
) -> None:
    publish(served.registry, served.registry.base("tiny"), Recipe("greeter"))  # of `default`
    theirs = served.openai("theirs")
    training = theirs.files.create(file=("a.jsonl", LINES), purpose="fine-tune").id
    lines = b"".join(
        b'{"prompt": "tell %d", "completion": "file %d"}\n' % (n, n) for n in range(12)
    )
    held_out = theirs.files.create(file=("v.jsonl", lines), purpose="fine-tune").id
    settings = {
        "training.max_steps": None, "training.epochs": 4, "training.batch_tokens": 2048,
        "training.keep_epochs": 0,
    }  # fmt: skip
    job = create(theirs, training, suffix="greeter", validation_file=held_out, settings=settings)
    start_worker()
    done = until(theirs, job.id)
    assert done.status == "succeeded", done.error

    told = [event.data.get("valid_loss") for event in events(theirs, job.id) if event.data]
    assert len(told) >= 4
    assert all(value is not None for value in told[1::2])  # at every checkpoint
    assert told[0] is None
    version = served.registry.find(done.fine_tuned_model)
    assert {(d.split, d.examples) for d in version.manifest.datasets if d.split != "train"} == {
        ("validation", 12), ("test", 12),
    }  # fmt: skip

    (kept,) = theirs.fine_tuning.jobs.checkpoints.list(done.id).data
    assert kept.fine_tuned_model_checkpoint == done.fine_tuned_model

    assert version.name.startswith("greeter-")  # the name itself is another project's
    assert version.manifest.project == "theirs"
    assert len(served.registry.versions(version.name)) == 1
