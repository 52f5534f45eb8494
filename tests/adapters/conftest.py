"""An S3 server for the whole session, and what a test needs to reach it."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.adapters.remotes import BUCKET, Proxy, s3_client, s3_server


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    with s3_server() as address:
        s3_client(address).create_bucket(Bucket=BUCKET)
        yield address


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, with its credentials in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return s3_address


@pytest.fixture(params=["s3", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    (tmp_path / "mount").mkdir()
    return {
        "s3": f"s3://{BUCKET}/{tmp_path.name}", "file": f"file://{tmp_path}/mount",
        "memory": f"memory://{tmp_path.name}",
    }[request.param]  # fmt: skip


@pytest.fixture
def proxy(s3: str) -> Iterator[Proxy]:
    address = urlsplit(s3)
    proxy = Proxy((address.hostname or "", address.port or 0))
    proxy.start()
    yield proxy
    proxy.stop()
