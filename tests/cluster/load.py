"""Chats without a pause by OpenAI's own client, streamed and not, each with how it ended."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

PAUSE_S = 0.02
TOKENS = 16


@dataclass(frozen=True)
class Asked:
    """One request, seen by its caller."""

    began: float
    ended: float
    stream: bool
    server: str
    """As HAProxy calls it; empty where no answer came."""
    version: str
    failure: str
    """Empty: the answer is whole."""


@dataclass
class Load:
    """All that was asked so far. Times are of `time.monotonic`."""

    asked: list[Asked] = field(default_factory=list)

    @property
    def failed(self) -> list[Asked]:
        return [one for one in self.asked if one.failure]

    @property
    def failures(self) -> dict[str, int]:
        """How often each server's requests failed in which way."""
        return Counter(f"{one.failure} of {one.server or 'none'}" for one in self.failed)

    def wait_for_more(self, count: int) -> None:
        wanted, deadline = len(self.asked) + count, time.monotonic() + 120
        while len(self.asked) < wanted:
            assert time.monotonic() < deadline, self.failed[-3:]
            time.sleep(0.05)


@contextmanager
def load(
    url: str, key: str, *, retries: int, clients: int = 2, kinds: tuple[bool, ...] = (False, True)
) -> Iterator[Load]:
    """Callers that ask one after the other, until the block ends and the last has its answer.

    Args:
        retries: of each client; OpenAI's default is 2.
        kinds: whether answers are streamed; each kind has so many clients.
    """
    seen, over = Load(), threading.Event()

    def ask(*, stream: bool) -> None:
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key=key, max_retries=retries, timeout=60
        ) as client:
            while not over.is_set():
                seen.asked.append(_chat(client, stream=stream))
                time.sleep(PAUSE_S)

    threads = [
        threading.Thread(target=ask, kwargs={"stream": stream})
        for stream in kinds
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _chat(client: openai.OpenAI, *, stream: bool) -> Asked:
    began, server, version, failure = time.monotonic(), "", "", ""
    try:
        raw = client.chat.completions.with_raw_response.create(
            model="tone", messages=[{"role": "user", "content": "save the file"}],
            max_tokens=TOKENS, temperature=0, stream=stream, extra_body={"ignore_eos": True},
        )  # fmt: skip
        server = raw.headers["x-served-by"]
        answer: Any = raw.parse()
        version, whole = _streamed(answer) if stream else _at_once(answer)
        failure = "" if whole else "cut"
    except openai.APIStatusError as error:
        server, failure = error.response.headers.get("x-served-by", ""), f"{error.status_code}"
    except (openai.APIError, httpx.TransportError) as error:
        failure = type(error).__name__
    return Asked(began, time.monotonic(), stream, server, version, failure)


def _at_once(answer: Any) -> tuple[str, bool]:
    return answer.model, answer.usage.completion_tokens == TOKENS


def _streamed(answer: Any) -> tuple[str, bool]:
    version, reason = "", None
    for chunk in answer:
        version = chunk.model
        reason = chunk.choices[0].finish_reason or reason
    return version, reason == "length"
