"""A real S3 server, a proxy before it that breaks, and homes that share a store."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer
from sqlalchemy import URL

from adapters.cached import CachedStore
from adapters.connect import open_database
from adapters.digests import digest_file
from adapters.home import Home
from adapters.registry import Registry, Version
from adapters.remote import Remote
from tests.adapters.parcels import draft, parcel

BUCKET = "models"


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def s3_client(endpoint: str) -> "boto3.client":
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="id", aws_secret_access_key="secret",
    )  # fmt: skip


def shared(folder: Path, url: str, *names: str) -> list[Registry]:
    """Registries of homes that share one database and one remote store."""
    database = open_database(URL.create("sqlite", database=str(folder / "shared.db")))
    return [
        Registry(Home(folder / name), database, CachedStore(folder / name / "store", Remote(url)))
        for name in names
    ]


def publish(registry: Registry, folder: Path, value: float = 1.0, name: str = "x") -> Version:
    made = folder / f"made-{value}"
    made = made if made.exists() else parcel(made, value)
    return registry.publish(made, draft(made, name))


def key_of(version: Version, file: str) -> str:
    return f"{version.name}/{version.digest.removeprefix('sha256:')}/{file}"


def is_whole(version: Version) -> bool:
    files = version.manifest.files
    return all(digest_file(version.folder / name) == digest for name, digest in files.items())


@dataclass
class Proxy:
    """Passes TCP on to an S3 server; can cut answers, be away, and tells what was asked."""

    target: tuple[str, int]
    requests: list[str] = field(default_factory=list)
    """Method and path, for downloads with the range asked for."""
    cut_after: int | None = None
    """Bytes of answers to downloads, headers included, that pass before the connection breaks."""
    cuts: int = 1
    """How many times it breaks; then all pass."""
    away_after_cut: bool = False
    away: bool = False
    _passed: int = 0
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def ranges(self, file: str) -> list[tuple[int, int]]:
        """First and last bytes asked of a file, in order."""
        found = [re.fullmatch(r"GET (\S+) (\d+)-(\d+)", text) for text in self.requests]
        return [(int(m[2]), int(m[3])) for m in found if m and m[1].endswith(file)]

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.away:
            client.close()
            return
        with client, socket.create_connection(self.target) as server:
            ranged = threading.Event()
            back = threading.Thread(target=self._answer, args=(server, client, ranged), daemon=True)
            back.start()
            try:
                while data := client.recv(65536):
                    if self.away:
                        break
                    for line in self._asked(data):
                        self.requests.append(line)
                        if line.startswith("GET") and "-" in line.rpartition(" ")[2]:
                            ranged.set()
                    server.sendall(data)
            except OSError:
                pass
            _close(server)
            back.join(5)

    def _asked(self, data: bytes) -> list[str]:
        found = []
        for head in data.split(b"\r\n\r\n"):
            match = re.match(rb"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP", head)
            if match:
                asked = re.search(rb"(?i)\r\nrange: bytes=(\d+-\d+)", head)
                parts = [*match.groups(), *(asked.groups() if asked else ())]
                found.append(b" ".join(parts).decode())
        return found

    def _answer(
        self, server: socket.socket, client: socket.socket, ranged: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if self.cut_after is None or not self.cuts or not ranged.is_set():
                    client.sendall(data)
                    continue
                client.sendall(data[: self.cut_after - self._passed])
                self._passed += len(data)
                if self._passed >= self.cut_after:
                    self.cuts -= 1
                    self._passed = 0
                    self.away = self.away_after_cut
                    break
        _close(client)


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
