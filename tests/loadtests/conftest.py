"""A stand-in server that answers in streams with known timing and known faults."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

GAP_S = 0.05


class Handler(BaseHTTPRequestHandler):
    """POST answers by what the whole prompt is; a stream has four pieces, GAP_S apart."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._json(200, {"data": [{"id": "stand-in"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append({"path": self.path, "key": self.headers["authorization"], **body})
        text = json.dumps(body)
        if '"refuse"' in text:
            self._json(429, {"error": {"code": "overloaded", "message": "try later"}})
        elif body.get("stream"):
            self._stream(text)
        else:
            self._json(200, {"usage": {"completion_tokens": 7}})

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self._chunk({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for number in range(4):
            time.sleep(GAP_S)
            if '"keep alive"' in text:
                self._raw(b": keep-alive\n\n")
            if number == 2 and '"cut"' in text:
                self.close_connection = True
                return
            if number == 2 and '"break"' in text:
                self._chunk({"error": {"code": "internal_error", "message": "engine died"}})
            if number == 2 and '"hang"' in text:
                time.sleep(1.5)
            self._chunk({"choices": [{"delta": {"content": f"é{number}"}}]})
        self._chunk({"choices": [], "usage": {"completion_tokens": 4}})
        self._raw(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, event: dict[str, Any]) -> None:
        self._raw(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")

    def _raw(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


@pytest.fixture
def server() -> Iterator[str]:
    """The stand-in's URL."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.seen.clear()
    thread = threading.Thread(target=http.serve_forever, args=[0.01], daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.fixture
def seen(server: str) -> list[dict[str, Any]]:
    """The requests that the stand-in got."""
    return Handler.seen
