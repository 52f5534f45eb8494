"""OpenAI's files, through the official client."""

import hashlib
import io
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from adapters.errors import StoreFailed
from adapters.home import Home
from adapters.registry import Registry
from service.database import FileRow
from service.errors import BadRequest, FileNotFound, InUse
from service.files import About, Files, derived_id
from tests.service.desk import Desk, desk

CHAT = (
    b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk(tmp_path_factory.mktemp("home"), max_file_bytes=3_000_000) as served:
        yield served


@pytest.fixture
def client(served: Desk) -> openai.OpenAI:
    return served.openai()


def upload(client: openai.OpenAI, content: bytes = CHAT, name: str = "a.jsonl", **more: Any) -> Any:
    more.setdefault("purpose", "fine-tune")
    return client.files.create(file=(name, content), **more)


def test_a_file_comes_back_byte_for_byte_and_goes_for_good(
    served: Desk, client: openai.OpenAI
) -> None:
    content = CHAT * 3 + b'{"messages": [{"role": "assistant", "content": "\xc3\xa9"}]}'
    made = upload(client, content)
    assert (made.object, made.bytes, made.filename) == ("file", len(content), "a.jsonl")
    assert (made.purpose, made.status, made.expires_at) == ("fine-tune", "processed", None)
    assert abs(made.created_at - time.time()) < 10
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == content
    gone = client.files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)
    assert not (served.registry.home.files / made.id).exists()


def test_another_projects_files_are_not_there(served: Desk, client: openai.OpenAI) -> None:
    made = upload(client)
    theirs = served.openai("theirs")
    for ask in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(made.id)
        assert caught.value.code == "file_not_found"
    assert made.id not in [file.id for file in theirs.files.list()]
    with pytest.raises(openai.BadRequestError, match="after"):
        theirs.files.list(after=made.id)
    assert client.files.retrieve(made.id).id == made.id


def test_pages_have_every_file_once_in_order(tmp_path: Path) -> None:
    with desk(tmp_path) as fresh:
        client = fresh.openai()
        ids = [upload(client, name=f"{n}.jsonl").id for n in range(7)]
        other = upload(client, purpose="batch", content=b"{}\n").id
        assert [f.id for f in client.files.list(limit=3)] == [other, *reversed(ids)]
        assert [f.id for f in client.files.list(limit=2, order="asc")] == [*ids, other]
        assert [f.id for f in client.files.list(purpose="batch")] == [other]
        page = client.files.list(limit=3, order="asc", purpose="fine-tune", after=ids[1])
        assert [f.id for f in page.data] == ids[2:5]
        assert page.has_more
        assert client.files.list(purpose="evals").data == []
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(after="file-nowhere")
        assert caught.value.param == "after"


def test_whoever_deletes_what_he_lists_reaches_the_end_of_the_list(tmp_path: Path) -> None:
    with desk(tmp_path) as fresh:
        client = fresh.openai()
        for n in range(5):
            upload(client, name=f"{n}.jsonl")
        for file in client.files.list(limit=2):
            client.files.delete(file.id)
        assert client.files.list().data == []
        assert [place for place in fresh.registry.home.files.iterdir() if place.is_file()] == []


@pytest.mark.parametrize(("given", "param"), [({"limit": 0}, "limit"), ({"order": "up"}, "order")])
def test_a_page_that_is_none_is_refused(client: openai.OpenAI, given: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.list(**given)
    assert param in str(caught.value.param)


@pytest.mark.parametrize(
    ("content", "name", "purpose", "param", "says"),
    [
        (CHAT, "a.jsonl", "assistants", "purpose", "not served"),
        (CHAT, "a.jsonl", "fine-tune-results", "purpose", "not served"),
        (CHAT, "a.txt", "fine-tune", "file", ".jsonl"),
        (CHAT, "a.csv", "batch", "file", ".jsonl"),
        (b"", "a.jsonl", "fine-tune", "file", "empty"),
        (b"\n\n", "a.jsonl", "fine-tune", "file", "no lines"),
        (CHAT + b"{broken\n", "a.jsonl", "fine-tune", "file", "line 2 is not JSON"),
        (CHAT + b"[1]\n", "a.jsonl", "evals", "file", "line 2 is no JSON object"),
        (CHAT + b'{"a": "\xff"}\n', "a.jsonl", "fine-tune", "file", "line 2 is not UTF-8"),
        (b'{"messages": []}\n', "a.jsonl", "fine-tune", "file", "line 1"),
        (b'{"messages": [{"role": "user"}]}\n', "a.jsonl", "fine-tune", "file", "nothing to learn"),
        (b'{"messages": [{"role": "boss"}]}\n', "a.jsonl", "fine-tune", "file", "'boss'"),
        (b"x" * 3_000_001, "a.bin", "user_data", "file", "3000001 bytes"),
    ],
)
def test_a_file_that_can_not_be_what_it_says_is_refused(
    served: Desk, client: openai.OpenAI, content: bytes, name: str, purpose: str, param: str,
    says: str,
) -> None:  # fmt: skip
    before = sorted(served.registry.home.files.iterdir())
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        upload(client, content, name, purpose=purpose)
    assert caught.value.param == param
    assert sorted(served.registry.home.files.iterdir()) == before
    assert list(served.cabinet.files.scratch.iterdir()) == []


def test_a_large_file_is_checked_in_a_process_of_its_own(client: openai.OpenAI) -> None:
    made = upload(client, CHAT * 15_000)
    assert made.bytes == len(CHAT) * 15_000
    with pytest.raises(openai.BadRequestError, match="line 15001 is not JSON"):
        upload(client, CHAT * 15_000 + b"{")


def test_tables_for_training_and_any_user_data_are_kept_unread(client: openai.OpenAI) -> None:
    assert upload(client, b"text,label\nx,y\n", "a.csv").bytes == 15
    assert upload(client, b"\xff\x00", "a.bin", purpose="user_data").bytes == 2


@pytest.mark.parametrize(
    ("name", "kept"), [("../../etc/passwd.jsonl", "passwd.jsonl"), ("C:\\x\\a.jsonl", "a.jsonl")]
)
def test_a_filename_never_becomes_a_path(client: openai.OpenAI, name: str, kept: str) -> None:
    assert upload(client, name=name).filename == kept


class TestExpiry:
    def test_a_file_expires_when_it_was_told_to(self, client: openai.OpenAI) -> None:
        made = upload(client, expires_after={"anchor": "created_at", "seconds": 3600})
        assert made.expires_at == made.created_at + 3600

    def test_files_for_batches_expire_in_a_month(self, client: openai.OpenAI) -> None:
        made = upload(client, b'{"a": 1}\n', purpose="batch")
        assert made.expires_at == made.created_at + 30 * 24 * 3600

    @pytest.mark.parametrize(
        "given",
        [
            {"anchor": "created_at", "seconds": 3599},
            {"anchor": "created_at", "seconds": 2592001},
            {"anchor": "yesterday", "seconds": 3600},
            {"seconds": 3600},
        ],
    )
    def test_a_time_out_of_bounds_is_refused(self, client: openai.OpenAI, given: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            upload(client, expires_after=given)

    def test_what_has_expired_is_gone_at_once_and_removed_soon(
        self, served: Desk, client: openai.OpenAI
    ) -> None:
        made = upload(client)
        past = datetime.now(UTC) - timedelta(seconds=1)
        with served.registry.database.write() as session:
            session.execute(update(FileRow).where(FileRow.id == made.id).values(expires=past))
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(made.id)
        assert made.id not in [file.id for file in client.files.list()]
        assert (served.registry.home.files / made.id).exists()
        assert served.cabinet.files.expire() == 1
        assert not (served.registry.home.files / made.id).exists()


class TestForms:
    def test_a_body_that_is_no_form_is_refused(self, served: Desk) -> None:
        with served.http() as http:
            answer = http.post("/v1/files", json={"purpose": "fine-tune"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "file"

    @pytest.mark.parametrize(
        ("form", "param", "code"),
        [
            ({"files": {"file": ("a.jsonl", CHAT)}}, "purpose", "missing_field"),
            (
                {"files": {"x": ("a.jsonl", CHAT)}, "data": {"purpose": "batch"}},
                "x",
                "invalid_value",
            ),
            ({"files": {"purpose": (None, b"batch")}}, "file", "missing_field"),
            (
                {"files": {"purpose": (None, b"batch"), "file": (None, b"x")}},
                "file",
                "invalid_value",
            ),
        ],
    )
    def test_a_field_that_is_missing_or_unknown_is_named(
        self, served: Desk, form: Any, param: str, code: str
    ) -> None:
        with served.http() as http:
            answer = http.post("/v1/files", **form)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code)

    def test_a_broken_form_is_refused(self, served: Desk) -> None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        with served.http() as http:
            for body in (b"--x\r\nnonsense", b"", b"--y--"):
                answer = http.post("/v1/files", content=body, headers=headers)
                assert answer.status_code == 400
                assert answer.json()["error"]["type"] == "invalid_request_error"

    def test_a_body_over_the_bound_is_cut_off(self, served: Desk, client: openai.OpenAI) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            upload(client, io.BytesIO(b"x" * 5_000_000).read(), "a.bin", purpose="user_data")
        assert caught.value.status_code == 413
        assert list(served.cabinet.files.scratch.iterdir()) == []

    def test_an_upload_that_is_cut_off_leaves_nothing(self, served: Desk) -> None:
        parts = urlsplit(served.url)
        before = sorted(served.registry.home.files.iterdir())
        head = (
            "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n"
            f"authorization: Bearer {served.keys['ours']}\r\n"
            "content-type: multipart/form-data; boundary=x\r\n\r\n"
            '--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        )
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(head.encode() + b"x" * 1_500_000)
        time.sleep(0.3)
        assert sorted(served.registry.home.files.iterdir()) == before
        assert list(served.cabinet.files.scratch.iterdir()) == []
        assert served.openai().files.list(limit=1).object == "list"


class TestFiles:
    """The files themselves, on both databases and on S3."""

    @pytest.fixture
    def registry(self, tmp_path: Path, database: str) -> Registry:
        return Registry.open(tmp_path / "home")

    @pytest.fixture
    def content(self, tmp_path: Path) -> Path:
        path = tmp_path / "content"
        path.write_bytes(CHAT)
        return path

    def test_a_file_in_use_stays(self, registry: Registry, content: Path) -> None:
        users: dict[str, str] = {}
        files = Files(registry.database, registry.home, [lambda _, id_: users.get(id_)])
        file = files.add(content, About("ours", "a.jsonl", "fine-tune"))
        users[file.id] = "job ftjob-1"
        with pytest.raises(InUse, match="job ftjob-1"):
            files.delete(file.id, "ours")
        assert files.find(file.id, "ours") == file
        users.clear()
        files.delete(file.id, "ours")

    def test_what_the_database_does_not_take_is_not_kept(
        self, registry: Registry, content: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = Files(registry.database, registry.home)

        def away() -> Any:
            raise StoreFailed("gone")

        monkeypatch.setattr(registry.database, "write", away)
        with pytest.raises(StoreFailed):
            files.add(content, About("ours", "a.jsonl", "fine-tune"))
        assert [path.name for path in registry.home.files.iterdir() if path.is_file()] == []

    @pytest.mark.parametrize("id_", [None, derived_id("batch_a", "output")])
    def test_a_break_after_the_commit_loses_nothing(
        self, registry: Registry, content: Path, monkeypatch: pytest.MonkeyPatch, id_: str | None
    ) -> None:
        files, write = Files(registry.database, registry.home), registry.database.write

        @contextmanager
        def breaks() -> Iterator[Session]:
            with write() as session:
                yield session
            raise StoreFailed("the connection broke")

        monkeypatch.setattr(registry.database, "write", breaks)
        file = files.add(content, About("ours", "a.jsonl", "batch_output"), id_)
        assert files.find(file.id, "ours") == file
        with files.content(file) as place:
            assert place.read_bytes() == CHAT

    def test_an_attempt_that_fails_takes_nothing_from_another(
        self, registry: Registry, content: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files, write, id_ = (
            Files(registry.database, registry.home),
            registry.database.write,
            "file-d",
        )
        about = About("ours", "a.jsonl", "batch_output")

        @contextmanager
        def overtaken() -> Iterator[Session]:
            monkeypatch.setattr(registry.database, "write", write)
            Files(registry.database, registry.home).add(content, about, id_)
            with write() as session:
                yield session

        monkeypatch.setattr(registry.database, "write", overtaken)
        assert files.add(content, about, id_) == files.find(id_, "ours")

        def away() -> Any:
            raise StoreFailed("gone")

        monkeypatch.setattr(registry.database, "write", away)
        with pytest.raises(StoreFailed):
            files.add(content, about, "file-e")
        with files.content(files.find(id_, "ours")) as place:
            assert place.read_bytes() == CHAT
        assert (registry.home.files / "file-e").exists()  # another attempt may be at it
        (registry.home.files / id_).unlink()
        files.add(content, about, id_)
        assert (registry.home.files / id_).read_bytes() == CHAT

    def test_what_was_deleted_is_not_made_again_by_work_that_is_repeated(
        self, registry: Registry, content: Path
    ) -> None:
        files, id_ = Files(registry.database, registry.home), derived_id("ftjob-a", "metrics")
        about = About("ours", "a.csv", "fine-tune-results")
        files.add(content, about, id_)
        files.delete(id_, "ours")
        assert files.add(content, about, id_).id == id_
        for expired in (True, False):
            with pytest.raises(FileNotFound):
                files.find(id_, "ours", expired=expired)
        assert not (registry.home.files / id_).exists()

    def test_a_deleted_file_is_a_place_in_the_list_for_a_week(
        self, registry: Registry, content: Path
    ) -> None:
        files = Files(registry.database, registry.home)
        first, second = (
            files.add(content, About("ours", "a.jsonl", "fine-tune")) for _ in range(2)
        )
        files.delete(second.id, "ours")
        how: Any = {"purposes": ["fine-tune"], "limit": 9, "rising": False}
        for days in (6, 8):
            with registry.database.write() as session:
                gone = datetime.now(UTC) - timedelta(days=days)
                changed = update(FileRow).where(FileRow.deleted.is_not(None)).values(deleted=gone)
                session.execute(changed)
            assert files.expire() == 0
            if days < 7:
                assert files.page("ours", after=second.id, **how) == ([first], False)
        with pytest.raises(BadRequest, match=second.id):
            files.page("ours", after=second.id, **how)

    def test_work_finds_its_file_after_its_time(self, registry: Registry, content: Path) -> None:
        files = Files(registry.database, registry.home)
        file = files.add(content, About("ours", "a.jsonl", "batch"))
        with registry.database.write() as session:
            session.execute(update(FileRow).values(expires=datetime.now(UTC)))
        with pytest.raises(FileNotFound):
            files.find(file.id, "ours")
        assert files.find(file.id, "ours", expired=True).digest == file.digest

    def test_a_content_that_was_lost_is_told(self, registry: Registry, content: Path) -> None:
        files = Files(registry.database, registry.home)
        file = files.add(content, About("ours", "a.jsonl", "fine-tune"))
        (registry.home.files / file.id).unlink()
        with pytest.raises(StoreFailed, match="missing"), files.content(file):
            pass

    def test_contents_may_lie_elsewhere(
        self, tmp_path: Path, content: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MODISTE_FILES_URL", f"memory://{tmp_path.name}")
        registry = Registry.open(tmp_path / "home")
        files = Files(registry.database, Home(tmp_path / "home"))
        file = files.add(content, About("ours", "a.jsonl", "fine-tune"))
        with files.content(file) as place:
            assert place.read_bytes() == CHAT
        assert hashlib.sha256(CHAT).hexdigest() in file.digest
        assert not place.exists()
        files.contents.remove([file.id])
        content.write_bytes(b"other")
        files.contents.upload(content, file.id)
        with pytest.raises(StoreFailed, match="altered"), files.content(file):
            pass
