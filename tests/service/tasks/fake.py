"""An engine that answers by a rule, models by a table, and an app around both."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from adapters.languages import same_language
from adapters.prompt import PromptTemplate, Renderer, TaskInput, default_prompt
from service import errors
from service.constraints import Constraint
from service.engine import Output, Piece, Sampling
from service.models import Resolved
from service.routes.tasks import router
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
BASE = Resolved("tiny", "sha256:0", "base")


def last_user_text(prompt: str) -> str:
    return prompt.rsplit("<|im_start|>user\n", maxsplit=1)[-1].split("<|im_end|>", maxsplit=1)[0]


class FakeEngine:
    """`reply(user text, sampling)` says what is generated, one token a piece when streamed."""

    def __init__(self, reply: Callable[[str, Sampling], str] = lambda text, _: text) -> None:
        self.renderer = Renderer(TOKENIZER)
        self.max_model_len = 4096
        self.reply = reply
        self.calls: list[tuple[list[int], Sampling]] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.gate: asyncio.Event | None = None
        self.fails_on: str | None = None
        self.most_scores = 128

    async def prompt_ids(self, template: PromptTemplate, task_input: TaskInput) -> list[int]:
        return self.renderer.prompt_ids(template, task_input)

    def score(self, prompt_ids: list[int], token: int) -> float:
        """A log-probability that depends on all that came before."""
        return -5.0 - math.sin(sum(prompt_ids) * 0.7 + token * 1.3) * 3

    async def generate(self, prompt_ids: list[int], sampling: Sampling, model: Resolved) -> Output:
        self.calls.append((prompt_ids, sampling))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await (asyncio.sleep(0) if self.gate is None else self.gate.wait())
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return self._output(prompt_ids, sampling)

    async def stream(
        self, prompt_ids: list[int], sampling: Sampling, model: Resolved
    ) -> AsyncIterator[Piece]:
        self.calls.append((prompt_ids, sampling))
        output = self._output(prompt_ids, sampling)
        sent = ""
        try:
            for end in range(1, len(output.token_ids) + 1):
                if self.gate is not None and end > 1:
                    await self.gate.wait()
                text = TOKENIZER.decode(output.token_ids[:end])
                if text.endswith("\ufffd"):
                    continue
                done = output if end == len(output.token_ids) else None
                yield Piece(text[len(sent) :], done)
                sent = text
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    def _output(self, prompt_ids: list[int], sampling: Sampling) -> Output:
        user = last_user_text(TOKENIZER.decode(prompt_ids))
        if self.fails_on is not None and self.fails_on in user:
            raise errors.EngineFailed("no")
        if sampling.score_ids:
            assert len(sampling.score_ids) <= self.most_scores
            scores = [{token: self.score(prompt_ids, token) for token in sampling.score_ids}]
            return Output("x", [0], "length", len(prompt_ids), 0, None, scores)
        text = self.reply(user, sampling)
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        reason = "stop"
        if len(ids) > sampling.max_tokens:
            ids, reason = ids[: sampling.max_tokens], "length"
            text = TOKENIZER.decode(ids)
        logprobs = [-0.1 * len(ids)] * len(ids) if sampling.chosen_logprobs else None
        return Output(text, ids, reason, len(prompt_ids), 0, logprobs)


def adapter(task: str, name: str = "a", *, languages: Any = (), labels: Any = ()) -> Resolved:
    manifest = SimpleNamespace(
        task=task, prompt=default_prompt(task), languages=list(languages), labels=list(labels)
    )
    version: Any = SimpleNamespace(name=name, number=1, manifest=manifest)
    return Resolved(f"{name}@1", "sha256:1", "proved", version=version)


class FakeModels:
    """Finds adapters by name, else the first of the task and languages, else the base."""

    def __init__(self, *adapters: Resolved) -> None:
        self.adapters = adapters

    async def resolve(
        self,
        reference: str | None,
        *,
        task: str,
        source_lang: str | None = None,
        target_lang: str | None = None,
        labels: Any = None,
    ) -> Resolved:
        if reference is not None:
            for found in self.adapters:
                if found.reference.split("@")[0] == reference.split("@")[0]:
                    return found
            raise errors.ModelNotFound("no such model", param="model")
        for found in self.adapters:
            pair = found.languages
            if found.version is None or found.version.manifest.task != task:
                continue
            if target_lang and (pair is None or not same_language(pair[1], target_lang)):
                continue
            if source_lang and pair is not None and not same_language(pair[0], source_lang):
                continue
            return found
        return BASE


class AnyGrammar:
    """Takes every schema, and keeps those that it was asked about."""

    def __init__(self) -> None:
        self.asked: list[Constraint] = []

    async def check(self, constraints: Sequence[Constraint]) -> None:
        self.asked += constraints


def make_app(engine: FakeEngine, *adapters: Resolved) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    app.state.modiste = SimpleNamespace(
        engine=engine, models=FakeModels(*adapters), grammars=AnyGrammar()
    )
    errors.install(app, {})
    return app


def post(app: FastAPI, path: str, **body: Any) -> httpx.Response:
    """One request, without a server."""
    return post_raw(app, path, json.dumps(body, allow_nan=False).encode())


def post_raw(app: FastAPI, path: str, body: bytes) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"content-type": "application/json"}
            return await client.post(path, content=body, headers=headers)

    return asyncio.run(send())


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found
