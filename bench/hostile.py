"""A raw-socket fuzzer: requests that no client library sends, against a running server.

    python -m bench.hostile http://127.0.0.1:8321 --cases 50000 --model NAME

Each case is made of its number and the seed alone, so that one that fails can be sent again. A case
fails when the answer is a 5xx, or is not HTTP at all; that none comes, or that the connection is
closed, is what some of them ask for.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

AT_ONCE = 8
ANSWER_S = 60.0
BROKEN_S = 0.3
"""For an answer to what is no whole request."""
MOST_READ = 2**20

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 16},
    "/v1/generate": {"prompt": "a", "max_tokens": 1},
    "/v1/translate": {"text": "a", "target_lang": "fr", "source_lang": "en", "max_tokens": 1},
    "/v1/answer": {"question": "a", "context": "b", "max_tokens": 1},
    "/v1/classify": {"text": "a", "labels": ["x", "y"]},
    "/v1/fine_tuning/jobs": {"training_file": "file-none"},
    "/v1/batches": {"input_file_id": "file-none", "endpoint": "/v1/responses"},
}
FIELDS = (
    "messages", "prompt", "input", "n", "stop", "logit_bias", "logprobs", "top_logprobs",
    "max_tokens", "max_completion_tokens", "seed", "temperature", "top_p", "top_k", "min_p",
    "tools", "tool_choice", "response_format", "structured_outputs", "stream", "stream_options",
    "metadata",
    "model", "text", "question", "context", "labels", "json_schema", "glossary", "echo", "suffix",
    "bad_words", "stop_token_ids", "allowed_token_ids", "min_tokens", "repetition_penalty",
    "reasoning", "instructions", "include", "user", "repetition_detection", "logprob_token_ids",
    "thinking_token_budget", "stream_interval", "reasoning_effort", "parallel_tool_calls",
    "truncation", "store", "method", "hyperparameters", "target_lang",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 2**31, 2**63 - 1, -(2**63), 2**63, 10**40, 0.5, -0.0, 1e308,
    "", " ", "a", "\0", "\ud800", "\u202e", "NaN", "../../etc/passwd", "http://127.0.0.1/", [], {},
    [None], [[]], [{}], {"": None}, {"type": "json_schema"}, {"type": "image_url"},
    {"a": {"b": []}}, float("nan"), float("inf"),
    {"regex": "(a|b)*c{0,99}"}, {"regex": "("}, {"json": {"$ref": "#"}}, {"choice": []},
    {"grammar": "root ::= root"}, {"role": "user", "content": [{"type": "file"}]}, ["a"] * 300,
    {"1": 1e9}, {"-1": 1}, {"type": "function", "function": {"name": "a"}}, "a" * 5000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """Pieces that are sent one after the other; `whole` when a whole request is among them."""

    kind: str
    pieces: tuple[bytes, ...]
    whole: bool = True
    leaves: bool = False
    """The caller goes away without waiting for an answer."""


@dataclass(slots=True)
class Found:
    """What came of the cases."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By kind and status, 0 where no answer came."""
    failures: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.statuses.total()


def make(number: int, model: str, seed: int = 0) -> Case:
    """The case of that number."""
    random = Random(f"{seed}:{number}")  # noqa: S311 - to be repeated
    kind = random.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    return KINDS[kind][1](random, model)


def _request(
    random: Random,
    model: str,
    body: bytes | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    path = random.choice(list(ROUTES))
    if body is None:
        body = json.dumps(ROUTES[path] | {"model": model}).encode()
    given = {
        "host": "a", "content-type": "application/json", "content-length": str(len(body)),
        **headers,
    }  # fmt: skip
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def _cut(random: Random, data: bytes, most: int = 6) -> tuple[bytes, ...]:
    places = sorted(random.randrange(len(data) + 1) for _ in range(random.randint(1, most)))
    return tuple(data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True))


def _split(random: Random, model: str) -> Case:
    return Case("split", _cut(random, _request(random, model)))


def _broken(random: Random, model: str) -> Case:
    """Breaks off: half-closed, or gone."""
    data = _request(random, model)
    data = data[: random.randrange(len(data))]
    return Case("broken", _cut(random, data, 2), whole=False, leaves=random.random() < 0.5)


def _gone(random: Random, model: str) -> Case:
    return Case("gone", (_request(random, model),), leaves=True)


def _garbled(random: Random, model: str) -> Case:
    data = bytearray(_request(random, model))
    for _ in range(random.randint(1, 12)):
        place = random.randrange(len(data))
        if random.random() < 0.3:
            del data[place : place + random.randint(1, 9)]
            data += b"\r\n"
        else:
            data[place] = random.randrange(256)
    return Case("garbled", (bytes(data),), whole=False)


def _chunks(random: Random, model: str) -> Case:
    body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1}).encode()
    size = random.choice(
        [b"%x" % len(body), b"ffffffffffffffff", b"f" * 40, b"-1", b"", b"zz", b"0x1",
         b"%x;a=b" % len(body), b"%x" % (2**40), b"%x" % (len(body) - 1)]
    )  # fmt: skip
    head = _request(random, model, b"", {"content-length": "", "transfer-encoding": "chunked"})
    end = random.choice([b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"", b"0\r\n" + b"t: v\r\n" * 500])
    return Case("chunks", (head, size + b"\r\n" + body + b"\r\n", end), whole=False)


def _text(random: Random, model: str) -> Case:
    """Bytes that are no UTF-8, in the body or in a header."""
    bad = bytes(random.randrange(128, 256) for _ in range(random.randint(1, 40)))
    body = b'{"model": "%s", "prompt": "%s"}' % (model.encode(), bad)
    name = random.choice(["x-request-id", "authorization", "x-modiste-sticky-key", "accept"])
    if random.random() < 0.5:
        return Case("text", (_request(random, model, body),))
    return Case(
        "text", (_request(random, model, None, {name: bad.decode("latin-1")}),), whole=False
    )


def _deep(random: Random, model: str) -> Case:
    depth = int(10 ** random.uniform(1, 5.5))
    opening, closing = random.choice([("[", "]"), ('{"a":', "}"), ('[{"type":', "}]")])
    inner = opening * depth + "1" + (closing * depth if random.random() < 0.7 else "")
    name = random.choice(FIELDS)
    body = f'{{"model": "{model}", "{name}": {inner}}}'.encode()
    return Case("deep", (_request(random, model, body),))


def _big(random: Random, model: str) -> Case:
    """Strings of up to 10 MB, and lists as long."""
    size = int(10 ** random.uniform(4, 7))
    value = random.choice(
        ['"' + "a " * (size // 2) + '"', '"' + "\\u00e9" * (size // 6) + '"',
         "[" + "0," * (size // 2) + "0]", "1" * min(size, 6000), '["' + "a" * size + '"]']
    )  # fmt: skip
    name = random.choice(("prompt", "text", "messages", "input", "stop", "model", "user", "seed"))
    body = f'{{"model": "{model}", "max_tokens": 1, "{name}": {value}}}'.encode()
    return Case("big", (_request(random, model, body),))


def _fields(random: Random, model: str) -> Case:
    """Sound JSON with values that no client sends."""
    path = random.choice(list(ROUTES))
    body = ROUTES[path] | {"model": model}
    for _ in range(random.randint(1, 3)):
        body[random.choice([*FIELDS, *body])] = _odd(random)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int) and body[name] > 2:
            body[name] = 2**63 - 1 if random.random() < 0.1 else 16
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return Case("fields", (head.encode() + data,))


def _odd(random: Random) -> Any:
    value = random.choice(ODD)
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        value = random.choice(
            [[value], [value, random.choice(ODD)], {random.choice(FIELDS): value},
             {"type": random.choice(["text", "json_schema", "function", "message"]), "text": value}]
        )  # fmt: skip
    return value


def _heads(random: Random, _model: str) -> Case:
    line = random.choice(
        ["GET /" + "a" * 20_000, "GET /v1/models?" + "a=b&" * 4000, "GET http://a/v1/models",
         "OPTIONS *", "PRI *", "TRACE /v1/models", "GET //v1//models", "GET /v1/models/%00",
         "GET /v1/models/..%2f..%2fetc", "GET /%ff%fe", "HEAD /v1/models", "DELETE /v1/models/x",
         "CONNECT a:1", "GET /v1/files?limit=99999999999999999999", "get /v1/models", "GET"]
    )  # fmt: skip
    version = random.choice(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/2.0", "HTTP/9", ""])
    more = random.choice(
        ["", "x: " + "v" * 100_000 + "\r\n", "x: y\r\n" * 2000, "host: b\r\n", "x\r\n", " x: y\r\n",
         "connection: upgrade\r\nupgrade: websocket\r\n", "connection: upgrade\r\nupgrade: h2c\r\n",
         "expect: 100-continue\r\ncontent-length: 5\r\n", "content-length: 5\r\n",
         "content-length: 9999999999999\r\n", "content-length: 1\r\ncontent-length: 2\r\n"]
    )  # fmt: skip
    data = f"{line} {version}\r\nhost: a\r\n{more}\r\n".encode()
    return Case("heads", _cut(random, data, 2), whole=False)


def _pipelined(random: Random, model: str) -> Case:
    several = b"".join(_request(random, model) for _ in range(random.randint(2, 4)))
    return Case("pipelined", (several,))


KINDS: dict[str, tuple[float, Callable[[Random, str], Case]]] = {
    "fields": (34, _fields), "garbled": (14, _garbled), "heads": (12, _heads), "split": (8, _split),
    "broken": (8, _broken), "chunks": (8, _chunks), "text": (6, _text), "deep": (5, _deep),
    "gone": (2, _gone), "pipelined": (2, _pipelined), "big": (1, _big),
}  # fmt: skip
"""With how often each comes."""


async def send_all(url: str, model: str, cases: int, seed: int = 0) -> Found:
    """Send so many cases, some at once."""
    address = urlsplit(url)
    found, numbers = Found(), iter(range(cases))

    async def work() -> None:
        for number in numbers:
            case = make(number, model, seed)
            answer = await _send(address.hostname or "", address.port or 80, case)
            status = status_of(answer)
            found.statuses[f"{case.kind} {status}"] += 1
            if status >= 500 or status < 0:
                found.failures.append(f"case {number} ({case.kind}): {answer[:600]!r}")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return found


async def _send(host: str, port: int, case: Case) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for piece in case.pieces:
            writer.write(piece)
            await writer.drain()
        if case.leaves:
            return b""
        if not case.whole:
            async with asyncio.timeout(BROKEN_S):
                return await _answered(reader)
        async with asyncio.timeout(ANSWER_S):
            return await _answered(reader)
    except TimeoutError:
        return b"HTTP/1.1 599 no answer\r\n" if case.whole else b""
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""  # it refused before all was sent
    finally:
        writer.transport.abort()


async def _answered(reader: asyncio.StreamReader) -> bytes:
    """An answer: its head, and as much of its body as tells that it is whole."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
    if length.isdigit():
        return head + await reader.readexactly(min(int(length), MOST_READ))
    body = b""
    while not body.endswith(b"0\r\n\r\n") and len(body) < MOST_READ:
        piece = await reader.read(65_536)
        if not piece:
            break
        body += piece
    return head + body


def status_of(answer: bytes) -> int:
    """0 where there is none, -1 where it is not HTTP."""
    if not answer:
        return 0
    status = answer[9:12]
    return int(status) if answer.startswith(b"HTTP/1.") and status.isdigit() else -1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", required=True)
    given = parser.parse_args()
    found = asyncio.run(send_all(given.url, given.model, given.cases, given.seed))
    for what, number in sorted(found.statuses.items()):
        print(f"{number:8} {what}")
    for failure in found.failures[:50]:
        print(failure, file=sys.stderr)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
