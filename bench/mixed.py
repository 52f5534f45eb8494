"""Mixed traffic in waves: chats, task routes, callers who hang up, errors that are asked for.

A wave's requests come within a second or two, each on a connection of its own; then there is
peace, since an engine that has nothing to do is as much a part of a day as one that is busy.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx

LIMIT_S = 120.0
HANG_UP_S = 0.05
LONG = 300
"""Tokens of an answer that nobody waits for."""
SCHEMA = {"type": "object", "properties": {"word": {"enum": ["open", "saved"]}}}

Ask = Callable[[httpx.AsyncClient, "Traffic"], Awaitable[int]]


@dataclass
class Traffic:
    """What is asked, and what came of it.

    Attributes:
        live: names of live adapters; `cold`: versions that may have to be loaded.
        outcomes: by kind and what became of it.
        wrong: what should not have come.
    """

    live: list[str]
    translator: str
    classifier: str
    cold: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(3))  # noqa: S311
    numbers: Any = field(default_factory=count)

    async def wave(self, url: str, requests: int, seconds: float) -> None:
        """So many requests within so many seconds; ends with the last answer."""
        moments = sorted(self.dice.uniform(0, seconds) for _ in range(requests))
        kinds = self.dice.choices(
            list(KINDS), [weight for weight, _, _ in KINDS.values()], k=requests
        )
        # a connection for each: one that is kept may be closed just when it is used again
        limits = httpx.Limits(max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            for at_s, kind in zip(moments, kinds, strict=True):
                group.create_task(self._ask(client, kind, at_s))

    async def _ask(self, client: httpx.AsyncClient, kind: str, at_s: float) -> None:
        await asyncio.sleep(at_s)
        _, wanted, ask = KINDS[kind]
        try:
            status = await ask(client, self)
        except (httpx.HTTPError, ValueError) as error:
            self.outcomes[f"{kind}: failed"] += 1
            self.wrong.append(f"{kind}: {error!r}")
            return
        self.outcomes[f"{kind}: {status or 'hung up'}"] += 1
        if status not in (wanted, 429):
            self.wrong.append(f"{kind}: HTTP {status}")

    @property
    def asked(self) -> int:
        return self.outcomes.total()

    def count(self, what: str) -> int:
        return sum(n for name, n in self.outcomes.items() if name.endswith(f": {what}"))

    def chat(self, model: str, tokens: int, **more: Any) -> dict[str, Any]:
        text = f"{next(self.numbers)}: the file could not be opened"  # never twice the same
        return {
            "model": model, "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens, **more,
        }  # fmt: skip

    def texts(self) -> list[str]:
        return [f"{next(self.numbers)}, save the folder" for _ in range(self.dice.randint(1, 4))]


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
    return (await client.post(path, json=body)).status_code


async def _chat(client: httpx.AsyncClient, traffic: Traffic) -> int:
    body = traffic.chat(traffic.dice.choice(traffic.live), 16)
    return await _post(client, "/v1/chat/completions", body)


async def _cold(client: httpx.AsyncClient, traffic: Traffic) -> int:
    model = traffic.dice.choice(traffic.cold or traffic.live)
    return await _post(client, "/v1/chat/completions", traffic.chat(model, 8))


async def _streamed(client: httpx.AsyncClient, traffic: Traffic) -> int:
    """Raises ValueError: the stream broke off."""
    body = traffic.chat(traffic.dice.choice(traffic.live), 24, stream=True)
    last = ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            last = line or last
    if answer.status_code == 200 and last != "data: [DONE]":
        raise ValueError(f"a stream ended with {last!r}")
    return answer.status_code


async def _formed(client: httpx.AsyncClient, traffic: Traffic) -> int:
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": SCHEMA}}
    body = traffic.chat("tiny", 24, response_format=form)
    return await _post(client, "/v1/chat/completions", body)


async def _generate(client: httpx.AsyncClient, traffic: Traffic) -> int:
    body = {"model": traffic.dice.choice(traffic.live), "prompt": traffic.texts(), "max_tokens": 12}
    return await _post(client, "/v1/generate", body)


async def _translate(client: httpx.AsyncClient, traffic: Traffic) -> int:
    body = {
        "model": traffic.translator, "text": traffic.texts(), "source_lang": "en",
        "target_lang": "fr", "max_tokens": 12,
    }  # fmt: skip
    return await _post(client, "/v1/translate", body)


async def _answer(client: httpx.AsyncClient, traffic: Traffic) -> int:
    (context, *_) = traffic.texts()
    body = {"model": "tiny", "question": "what is open?", "context": context, "max_tokens": 8}
    return await _post(client, "/v1/answer", body)


async def _classify(client: httpx.AsyncClient, traffic: Traffic) -> int:
    return await _post(
        client, "/v1/classify", {"model": traffic.classifier, "text": traffic.texts()}
    )


async def _leaves_a_stream(client: httpx.AsyncClient, traffic: Traffic) -> int:
    """0: hung up after the first piece."""
    body = traffic.chat(traffic.dice.choice(traffic.live), LONG, stream=True, ignore_eos=True)
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            return answer.status_code
        async for _ in answer.aiter_lines():
            break
    return 0


async def _leaves(client: httpx.AsyncClient, traffic: Traffic) -> int:
    """0: hung up before there was an answer."""
    body = traffic.chat(traffic.dice.choice(traffic.live), LONG, ignore_eos=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(HANG_UP_S):
            return await _post(client, "/v1/chat/completions", body)
    return 0


async def _unknown(client: httpx.AsyncClient, traffic: Traffic) -> int:
    body = traffic.chat(f"nobody-{next(traffic.numbers)}", 1)
    return await _post(client, "/v1/chat/completions", body)


async def _faulty(client: httpx.AsyncClient, traffic: Traffic) -> int:
    return await _post(client, "/v1/chat/completions", traffic.chat("tiny", 1, n=10_000))


async def _scrape(client: httpx.AsyncClient, _: Traffic) -> int:
    return (await client.get("/metrics")).status_code


KINDS: dict[str, tuple[int, int, Ask]] = {
    "chat": (5, 200, _chat), "streamed chat": (5, 200, _streamed), "cold version": (3, 200, _cold),
    "schema": (1, 200, _formed), "generate": (2, 200, _generate), "translate": (2, 200, _translate),
    "answer": (1, 200, _answer), "classify": (2, 200, _classify), "scrape": (1, 200, _scrape),
    "hang-up in a stream": (2, 0, _leaves_a_stream), "hang-up": (1, 0, _leaves),
    "unknown model": (1, 404, _unknown), "faulty": (1, 400, _faulty),
}  # fmt: skip
"""How often each comes, what its status should be (0: it hung up), and how it is asked."""
