"""An audit asks the database about every locked package, and says so when it can't."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.servers import free_port
from scripts import audit

KNOWN = {
    "id": "OSV-1", "summary": "it burns", "affected": [
        {"package": {"name": "burns", "ecosystem": "PyPI"}, "versions": ["1.0"],
         "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}]}
    ],
}  # fmt: skip
HASH = f" \\\n    --hash=sha256:{64 * 'a'}\n"


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def database(asked: list[str]) -> Iterator[str]:
    """Answers as OSV does; it knows of one package."""

    class Osv(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name = question["package"]["name"]
            asked.append(f"{name} {question['version']}")
            body = json.dumps({"vulns": [KNOWN]} if name == "burns" else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Osv)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("name", "code"), [("burns", 1), ("sound", 0)])
def test_a_known_vulnerability_fails_the_audit(
    tmp_path: Path, database: str, asked: list[str], name: str, code: int,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lock = tmp_path / "lock.txt"
    lock.write_text(f"other==2.0{HASH}{name}==1.0{HASH}")

    assert audit.main(["--database", database, "--lock", str(lock)]) == code
    assert {"other 2.0", f"{name} 1.0"} <= set(asked)
    assert ("OSV-1" in capfd.readouterr().out) == bool(code)


def test_a_database_that_can_t_be_reached_is_told_plainly(
    capfd: pytest.CaptureFixture[str],
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1/query"
    assert audit.main(["--database", nobody]) == 2
    assert capfd.readouterr().err.startswith(f"NOT AUDITED: {nobody} can't be reached: ")


def test_every_lock_is_audited() -> None:
    locks = {path.name for path in (audit.ROOT / "requirements").glob("*.txt")}
    assert locks - {"overrides.txt"} == set(audit.LOCKS)
