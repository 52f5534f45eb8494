"""Limits in front of the real engine: what it really used replaces what was reserved."""

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from service.limiting.limits import LIMITS
from service.projects import Projects
from tests.serving import Running

MOST = 600
CHAT: dict[str, Any] = {"model": "one", "messages": [{"role": "user", "content": "a"}]}


def remaining(client: openai.OpenAI) -> int | None:
    found = client.models.with_raw_response.list().headers.get("x-ratelimit-remaining-tokens")
    return None if found is None else int(found)


def wait_for(client: openai.OpenAI, *values: int | None) -> int | None:
    deadline = time.monotonic() + 10
    while (found := remaining(client)) not in values:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    """Of everybody without a key, limited for as long as the test."""
    client, projects = server.openai(), Projects(server.registry.database)
    projects.limit("default", {"tokens_per_minute": MOST})
    wait_for(client, MOST)
    yield client
    projects.limit("default", dict.fromkeys(LIMITS))
    wait_for(client, None)


def test_tokens_of_the_engine_replace_those_that_were_reserved(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**CHAT, max_tokens=4)
    usage = raw.parse().usage
    assert usage is not None
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) < MOST - 4
    left = MOST - usage.total_tokens
    wait_for(client, left)

    stream = client.chat.completions.create(
        **CHAT, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    *_, last = stream
    wait_for(client, left - last.usage.total_tokens)

    with pytest.raises(
        openai.RateLimitError, match="project default may have 600 tokens"
    ) as caught:
        client.chat.completions.create(**CHAT, n=8, max_tokens=100)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
