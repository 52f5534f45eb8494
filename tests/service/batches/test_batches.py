"""OpenAI's batches through the official client; a stand-in answers where an engine would.

What the engine answers is looked at in tests/engine.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import openai
import pytest

from service.database import BatchRow
from service.keys import Keys
from tests.service.batches.asked import create, line, lines_of, until, upload
from tests.service.desk import Desk, StandIn, desk


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn(tmp_path_factory.mktemp("log") / "asked")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, stand_in: StandIn) -> Iterator[Desk]:
    with desk(tmp_path_factory.mktemp("home"), stand_in=stand_in) as served:
        yield served


@pytest.fixture
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


def test_a_batch_is_answered_in_the_files_order(
    client: openai.OpenAI, stand_in: StandIn, served: Desk
) -> None:
    told = served.metrics.registry.get_sample_value
    answered = "modiste_batch_lines_total", {"outcome": "answered"}
    before, count = len(stand_in.asked()), told(*answered) or 0
    content = b"".join(line(f"id-{n}", f"slow {n}") for n in range(40))
    batch = create(client, content, metadata={"team": "a"})
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/generate")
    assert (batch.completion_window, batch.metadata) == ("24h", {"team": "a"})
    assert batch.expires_at == batch.created_at + 86400
    batch = until(client, batch.id)
    assert batch.status == "completed", batch
    assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert (batch.error_file_id, batch.errors) == (None, None)
    lines = lines_of(client, batch.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"id-{n}" for n in range(40)]
    for n, one in enumerate(lines):
        assert (one["error"], one["response"]["status_code"]) == (None, 200)
        assert one["response"]["body"] == {"object": "generate", "text": str(n)}
        assert one["response"]["request_id"]
    assert len({one["id"] for one in lines}) == 40
    asked = stand_in.asked()[before:]
    key = next(key for key in Keys(served.registry.database).all("ours"))
    assert {one.split(" ", 2)[2] for one in asked} == {f"ours {key.id} 10"}
    assert stand_in.most == 8
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert next(iter(client.batches.list())).id == batch.id
    assert told(*answered) == count + 40
    assert told("modiste_batch_lines_in_flight") == 0


def test_broken_and_refused_lines_are_lines_of_the_error_file(client: openai.OpenAI) -> None:
    content = (
        line("a", "x 1") + b"{broken\n" + line("b", "wrong") + line("a", "x 2")
        + line("c", "broken") + line("d", "busy 3") + line("e", "x", url="/v1/chat/completions")
    )  # fmt: skip
    batch = until(client, create(client, content).id)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 7, "completed": 2, "failed": 5}
    assert [one["custom_id"] for one in lines_of(client, batch.output_file_id)] == ["a", "d"]
    errors = lines_of(client, batch.error_file_id)
    codes = [(one["custom_id"], (one["error"] or {}).get("code")) for one in errors]
    assert codes == [
        (None, "invalid_json_line"), ("b", None), ("a", "duplicate_custom_id"), ("c", None),
        ("e", "invalid_url"),
    ]  # fmt: skip
    assert "line 2" in errors[0]["error"]["message"]
    assert errors[1]["response"]["status_code"] == 400
    assert errors[1]["response"]["body"]["error"]["param"] == "prompt"
    assert errors[3]["response"]["status_code"] == 500


def test_request_counts_rise_and_cancel_keeps_what_came(client: openai.OpenAI) -> None:
    content = b"".join(line(f"id-{n}", f"slow {n}") for n in range(2000))
    batch = create(client, content)
    deadline, counts = time.monotonic() + 20, set()
    while len(counts) < 3 and time.monotonic() < deadline:
        counts.add(client.batches.retrieve(batch.id).request_counts.completed)
    assert len(counts) == 3
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    batch = until(client, batch.id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at <= batch.cancelled_at
    done = len(lines_of(client, batch.output_file_id))
    assert max(counts) <= done == batch.request_counts.completed < 2000
    with pytest.raises(openai.BadRequestError, match="is cancelled") as error:
        client.batches.cancel(batch.id)
    assert error.value.code == "wrong_status"


def test_what_is_late_expires(client: openai.OpenAI, served: Desk) -> None:
    content = line("a", "x 1") + line("b", "never") + line("c", "x 2")
    batch = create(client, content, "1m")
    until(client, batch.id, "in_progress")
    while client.batches.retrieve(batch.id).request_counts.completed < 2:
        time.sleep(0.05)
    with served.registry.database.write() as session:
        row = session.query(BatchRow).filter_by(id=batch.id).one()
        row.expires = datetime.now(UTC) - timedelta(seconds=1)
    batch = until(client, batch.id)
    assert batch.status == "expired"
    assert batch.expired_at >= batch.created_at
    assert [one["custom_id"] for one in lines_of(client, batch.output_file_id)] == ["a", "c"]
    (late,) = lines_of(client, batch.error_file_id)
    assert (late["custom_id"], late["error"]["code"]) == ("b", "batch_expired")


@pytest.mark.parametrize("content", [b"\n", b"{}\n" * 50_001], ids=["empty", "too many"])
def test_a_file_that_is_no_batch_fails(client: openai.OpenAI, content: bytes) -> None:
    batch = until(client, create(client, content).id)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert error.code in ("empty_file", "too_many_lines")
    assert (error.param, batch.output_file_id) == ("input_file_id", None)
    assert batch.failed_at is not None


def test_what_can_not_be_asked(client: openai.OpenAI, served: Desk) -> None:
    file = upload(client, line("a", "x"))
    good = {"input_file_id": file, "endpoint": "/v1/generate", "completion_window": "24h"}
    training = client.files.create(
        file=("t.jsonl", b'{"prompt": "a", "completion": "b"}\n'), purpose="fine-tune"
    ).id
    wrong = {
        "endpoint": ["/v1/embeddings", "", "/v1/adapters/gc"],
        "completion_window": ["8d", "soon"],
        "input_file_id": ["file-none", training],
        "metadata": [{"k": "v" * 513}],
        "output_expires_after": [{"anchor": "created_at", "seconds": 5}],
    }
    for field, values in wrong.items():
        for value in values:
            with pytest.raises(openai.BadRequestError) as error:
                client.batches.create(**(good | {field: value}))  # type: ignore[arg-type]
            assert str(error.value.param).startswith(field), (field, value)
    with pytest.raises(openai.BadRequestError, match=f"no file '{file}'"):
        served.openai("theirs").batches.create(**good)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="after"):
        client.batches.list(after="batch_none")
    for id_ in ("batch_none", create(client, line("a", "x")).id):
        for ask in (
            served.openai("theirs").batches.retrieve,
            served.openai("theirs").batches.cancel,
        ):
            with pytest.raises(openai.NotFoundError) as missing:
                ask(id_)
            assert missing.value.code == "batch_not_found"


def test_a_file_in_use_stays(client: openai.OpenAI) -> None:
    batch = create(client, line("a", "never"))
    until(client, batch.id, "in_progress")
    with pytest.raises(openai.ConflictError, match=batch.id):
        client.files.delete(batch.input_file_id)
    client.batches.cancel(batch.id)
    assert until(client, batch.id).status == "cancelled"
    assert client.files.delete(batch.input_file_id).deleted


def test_a_large_file_is_read_by_a_process_of_its_own(client: openai.OpenAI) -> None:
    content = b"".join(line(f"id-{n}", f"x {n}", body={"prompt": f"x {n}", "pad": "p" * 5000})
                       for n in range(300))  # fmt: skip
    assert len(content) > 2**20
    batch = until(client, create(client, content).id)
    assert batch.request_counts.completed == 300


def test_outputs_expire_when_asked_to(client: openai.OpenAI) -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    batch = until(client, create(client, line("a", "x"), output_expires_after=expiry).id)
    output = client.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 3600
