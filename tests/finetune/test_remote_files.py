"""Data behind URLs: from a real S3 server and a real web server, whole or not at all."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adapters.errors import InvalidInput, StoreFailed
from adapters.prompt import Renderer
from finetune.config import Recipe
from finetune.data import data_files, prepare, source_digests
from finetune.sources import at_hand, find_files
from tests.adapters.remotes import BUCKET, s3_client, s3_server

LINES = "".join(f'{{"source": "save {n}", "target": "garder {n}"}}\n' for n in range(40))


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    with s3_server() as address:
        s3_client(address).create_bucket(Bucket=BUCKET)
        yield address


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("a", "b"):
        s3_client(s3_address).put_object(
            Bucket=BUCKET, Key=f"data/{name}.jsonl", Body=LINES.replace("save", name).encode()
        )
    return f"s3://{BUCKET}/data"


class Handler(SimpleHTTPRequestHandler):
    """Files without ranges; one whose name begins with `cut` breaks off."""

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        if not self.path.startswith("/cut"):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(LINES)))
        self.end_headers()
        self.wfile.write(LINES[:100].encode())


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jsonl").write_text(LINES)
    handler = partial(Handler, directory=str(tmp_path / "web"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_glob_in_s3_prepares_as_the_same_files_here_and_leaves_nothing(
    s3: str, make_recipe: Callable[..., Recipe], renderer: Renderer, tmp_path: Path, temporary: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(LINES.replace("save", name))
    here = make_recipe("translate", data={"train": str(tmp_path / "[ab].jsonl")})
    there = make_recipe("translate", data={"train": f"{s3}/*.jsonl"})

    one, other = prepare(here, renderer, 512), prepare(there, renderer, 512)

    assert len(one.rows) == 80
    assert [(r.key, r.split) for r in one.rows] == [(r.key, r.split) for r in other.rows]
    assert other.rows[0].origin == f"{s3}/a.jsonl:1"
    assert list(one.sources["train"].values()) == list(other.sources["train"].values())
    assert other.sources == source_digests(data_files(there.data))
    assert list(temporary.iterdir()) == []


def test_a_file_from_the_web_is_read_without_ranges(
    web: str, make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    recipe = make_recipe("translate", data={"train": f"{web}/a.jsonl"})
    assert len(prepare(recipe, renderer, 512).rows) == 40


def test_a_file_that_breaks_off_is_an_error_and_leaves_nothing(web: str, temporary: Path) -> None:
    sources = find_files([f"{web}/cut.jsonl"], "data.train")
    with pytest.raises(StoreFailed, match=r"can't read http.*cut\.jsonl"), at_hand(sources):
        pass
    assert list(temporary.iterdir()) == []


def test_a_file_that_is_not_there_is_told_by_its_url(s3: str, web: str) -> None:
    for url in (f"{s3}/none.jsonl", "s3://no-such-bucket/a.jsonl"):
        with pytest.raises(InvalidInput, match=rf"data\.train: there is no {url}"):
            find_files([url], "data.train")
    with pytest.raises(InvalidInput, match=r"matches no file"):
        find_files([f"{s3}/*.csv"], "data.train")
    sources = find_files([f"{web}/none.jsonl"], "data.train")
    with pytest.raises(InvalidInput, match=r"there is no http.*none\.jsonl"), at_hand(sources):
        pass


def test_a_server_that_is_away_is_told_as_such(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreFailed, match=r"can't read s3://.*127\.0\.0\.1:9"):
        find_files([f"{s3}/a.jsonl"], "data.train")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nothing://x/a.csv", "not of a file system that is known"),
        ("zip://a.csv::http://x/a.zip", "not of a file system that is known"),
        ("https://me:secret@x/a.csv", "credentials"),
        ("https://x/a.csv?token=secret", "credentials"),
        ("s3://key:secret@bucket/a.csv", "credentials"),
        ("https://x/*.csv", "has no listings"),
        ("https://x/a.exe", "of an unknown kind"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_without_repeating_secrets(
    url: str, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        find_files([url], "data.train")
    assert "secret" not in str(caught.value)
