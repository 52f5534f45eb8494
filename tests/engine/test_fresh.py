"""A server that nobody has asked yet: its first answer, and what it keeps of later ones."""

import json
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from adapters.registry import Registry
from bench.resident import Samples
from bench.servers import Server
from tests.engine.ends import until
from tests.made import add_tiny_base
from tests.serving import Running, start, stop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Fresh(Running):
    """With the seconds to the first token of the first chat that it was ever asked."""

    first_s: float


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """No adapter is live, so nothing was proved."""
    home = tmp_path_factory.mktemp("home")
    registry = Registry.open(home)
    base = add_tiny_base(registry)
    process, url = start(home, MODISTE_ANSWER_WAIT_S="1", MODISTE_WORKER_JOBS="0")
    try:
        yield Fresh(registry, base, url, home / "serve.log", process, first_token_s(url))
    finally:
        stop(process)


def first_token_s(url: str) -> float:
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "save the file"}],
        "max_tokens": 4, "stream": True,
    }  # fmt: skip
    began = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if '"content":"' in line and '"content":""' not in line:
                return time.perf_counter() - began
    raise AssertionError("a stream without text")


def test_the_first_chat_takes_hardly_longer_than_later_ones(fresh: Fresh) -> None:
    later_s = statistics.median(first_token_s(fresh.url) for _ in range(10))
    assert fresh.first_s < later_s + 0.4


def test_prompts_of_many_lengths_leave_little_memory_behind(fresh: Fresh, tmp_path: Path) -> None:
    """On CPU a product is compiled for each number of tokens in a step."""
    server = Server("fresh", 0, fresh.process.pid, fresh.process.pid, "tiny")
    samples = Samples(server, tmp_path / "samples.jsonl")
    with fresh.client() as client:

        def ask(lengths: range) -> None:
            for length in lengths:
                body = {"model": "tiny", "prompt": [7 + length % 300] * length, "max_tokens": 1}
                client.post("/v1/completions", json=body).raise_for_status()

        ask(range(1, 130))
        before = samples.take()
        ask(range(130, 430))
        after = samples.take()
    assert after.anonymous_mib - before.anonymous_mib < 100  # else a MiB and a half for each


def test_who_reads_nothing_of_a_long_answer_holds_no_place_in_the_engine(fresh: Fresh) -> None:
    # 16 answers, each token with the 20 likeliest: more than the sockets between them take
    body = {
        "model": "tiny", "prompt": "a", "max_tokens": 400, "n": 16, "logprobs": 20,
        "ignore_eos": True, "stream": True,
    }  # fmt: skip
    payload = json.dumps(body).encode()
    address = httpx.URL(fresh.url)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect((address.host, address.port))
    reader.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(payload), payload)
    )
    try:
        with fresh.client() as client:

            def said(*names: str) -> list[float]:
                lines = client.get("/metrics").text.splitlines()
                return [
                    sum(float(ln.rsplit(" ", 1)[1]) for ln in lines if ln.startswith(name))
                    for name in names
                ]

            cut = 'modiste_connection_refusals_total{code="answer_not_read"}'
            until(lambda: said(cut) == [1.0])
            # who asks is in flight himself
            names = ("modiste_running_sequences", "modiste_requests_in_flight")
            until(lambda: said(*names) == [0.0, 1.0])
    finally:
        reader.close()
