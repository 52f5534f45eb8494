"""Large files in parts, through the official client."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from sqlalchemy import update

from service.database import UploadRow
from tests.service.desk import Desk, desk

LINE = b'{"custom_id": "a", "body": {}}\n'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk(tmp_path_factory.mktemp("home")) as served:
        yield served


@pytest.fixture
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


def begin(client: openai.OpenAI, size: int, **more: Any) -> Any:
    more = {"filename": "b.jsonl", "mime_type": "application/jsonl", "purpose": "batch"} | more
    return client.uploads.create(bytes=size, **more)


def send(client: openai.OpenAI, upload: str, data: bytes) -> str:
    return client.uploads.parts.create(upload, data=data).id


def kept(served: Desk) -> list[str]:
    return sorted(p.name for p in (served.registry.home.files / "parts").glob("*"))


def test_parts_become_a_file_in_the_order_told(served: Desk, client: openai.OpenAI) -> None:
    content = LINE * 100
    upload = begin(client, len(content))
    assert (upload.object, upload.status, upload.file) == ("upload", "pending", None)
    assert upload.expires_at == upload.created_at + 3600
    last, first = send(client, upload.id, content[1000:]), send(client, upload.id, content[:1000])
    done = client.uploads.complete(
        upload.id, part_ids=[first, last], md5=hashlib.md5(content).hexdigest()
    )
    assert done.status == "completed"
    assert done.file is not None
    assert (done.file.bytes, done.file.filename, done.file.purpose) == (3100, "b.jsonl", "batch")
    assert client.files.content(done.file.id).read() == content
    assert kept(served) == []


def test_a_cancelled_upload_takes_nothing_more(served: Desk, client: openai.OpenAI) -> None:
    upload = begin(client, 10)
    send(client, upload.id, b"12345")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert kept(served) == []
    for late in (
        lambda: send(client, upload.id, b"1"),
        lambda: client.uploads.cancel(upload.id),
        lambda: client.uploads.complete(upload.id, part_ids=["part_x"]),
    ):
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            late()


def test_an_upload_expires(served: Desk, client: openai.OpenAI) -> None:
    upload = begin(client, 10)
    send(client, upload.id, b"12345")
    past = datetime.now(UTC) - timedelta(seconds=1)
    with served.registry.database.write() as session:
        session.execute(update(UploadRow).where(UploadRow.id == upload.id).values(expires=past))
    with pytest.raises(openai.BadRequestError, match="expired"):
        send(client, upload.id, b"1")
    assert served.cabinet.uploads.expire() == 1
    assert kept(served) == []
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.uploads.cancel(upload.id)


def test_another_projects_upload_is_not_there(served: Desk, client: openai.OpenAI) -> None:
    upload = begin(client, 10)
    theirs = served.openai("theirs")
    for ask in (
        lambda: send(theirs, upload.id, b"1"),
        lambda: theirs.uploads.cancel(upload.id),
        lambda: theirs.uploads.complete(upload.id, part_ids=["part_x"]),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "upload_not_found"


def test_what_can_not_become_the_file_leaves_the_upload_open(client: openai.OpenAI) -> None:
    upload = begin(client, 2 * len(LINE), purpose="evals")
    part = send(client, upload.id, LINE)
    wrong = {
        "have 31 bytes": [part],
        "no part": [part, "part_nowhere"],
        "named twice": [part, part],
    }
    for says, part_ids in wrong.items():
        with pytest.raises(openai.BadRequestError, match=says) as caught:
            client.uploads.complete(upload.id, part_ids=part_ids)
        assert caught.value.param == "part_ids"
    with pytest.raises(openai.BadRequestError, match="were announced"):
        send(client, upload.id, LINE + b"x")
    broken = send(client, upload.id, b"{" + LINE[1:-1] + b"{")
    with pytest.raises(openai.BadRequestError, match="line 2 is not JSON"):
        client.uploads.complete(upload.id, part_ids=[part, broken])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(upload.id, part_ids=[broken, part], md5="0" * 32)
    assert client.uploads.cancel(upload.id).status == "cancelled"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2**40}, "bytes"),
        ({"purpose": "vision"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"filename": "b.txt"}, "file"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
    ],
)
def test_an_upload_of_what_is_not_served_is_refused(
    client: openai.OpenAI, wrong: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        begin(client, wrong.pop("bytes", 10), **wrong)
    assert caught.value.param == param


def test_of_two_completions_at_once_one_makes_the_file(served: Desk, client: openai.OpenAI) -> None:
    before = {file.id for file in client.files.list()}
    upload = begin(client, len(LINE))
    part = send(client, upload.id, LINE)

    def complete(_: int) -> str:
        try:
            return str(served.openai().uploads.complete(upload.id, part_ids=[part]).status)
        except openai.APIStatusError as error:
            return str(error.status_code)

    # more than threads: none may wait for another that waits for a thread
    with ThreadPoolExecutor(40) as pool:
        ended = sorted(pool.map(complete, range(40)))
    assert ended[-1] == "completed"
    assert set(ended[:-1]) <= {"400", "503"}
    assert len({file.id for file in client.files.list()} - before) == 1
