"""Users who stream chats all the time, while something else happens to the server."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import httpx

USERS, TOKENS = 2, 32


@dataclass
class Answers:
    """Answers of the steady load: when asked, when done (seconds), and by which version."""

    done: list[tuple[float, float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """Between two pieces of a stream: when it ended, and how long it was, seconds."""

    def longest_pauses(self, spans: list[tuple[float, float]]) -> list[float]:
        """The longest pause of any stream that ended in each span."""
        return [
            max((s for at, s in self.pauses if first <= at <= last), default=0.0)
            for first, last in spans
        ]

    def during(self, spans: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Seconds of the answers that met a promotion, and of the others."""
        met: list[float] = []
        others: list[float] = []
        for began, ended, _ in self.done:
            meets = any(began < last and ended > first for first, last in spans)
            (met if meets else others).append(ended - began)
        return met, others


@contextmanager
def steady_load(url: str, model: str) -> Iterator[Answers]:
    """Users who chat with a model until the body ends."""
    done, answers = Event(), Answers()

    def chat() -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not done.is_set():
                began = time.perf_counter()
                try:
                    models = _stream(client, model, answers.pauses)
                except (httpx.HTTPError, ValueError) as error:
                    answers.failed.append(repr(error))
                    continue
                answers.done.append((began, time.perf_counter(), ", ".join(sorted(models))))
                if len(models) != 1:
                    answers.failed.append(f"one stream by {models}")

    threads = [Thread(target=chat) for _ in range(USERS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _stream(client: httpx.Client, model: str, pauses: list[tuple[float, float]]) -> set[str]:
    body = {**chat_body(model, TOKENS), "stream": True}
    models: set[str] = set()
    last = 0.0
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                now = time.perf_counter()
                if models:  # the wait for the first piece is no pause
                    pauses.append((now, now - last))
                last = now
                models.add(json.loads(line[6:])["model"])
    return models


def chat_body(model: str, tokens: int, begin: str = "") -> dict[str, object]:
    text = f"{begin}Tell me of the sea, the harbour and the ships."
    message = {"role": "user", "content": text}
    return {
        "model": model, "messages": [message], "max_tokens": tokens, "ignore_eos": True,
        "temperature": 0,
    }  # fmt: skip
