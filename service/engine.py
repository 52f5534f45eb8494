"""vLLM's engine as the rest of the server sees it.

With `plugin.py`, `launch.py` and what runs inside vLLM's own processes the only module
that imports vllm, and the only one that translates its errors.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fastapi.responses import JSONResponse
from vllm import SamplingParams
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMNotFoundError, VLLMServerError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.exceptions import EngineDeadError

from adapters.errors import ProofFailed, StoreFailed
from adapters.prompt import PromptTemplate, Renderer, TaskInput, Tokenizer
from service.errors import BadRequest, EngineFailed, EngineStopped, error_response, from_service
from service.inspector import Inspection, together
from service.metering import Meter
from service.models import Resolved
from service.record import PRIORITY_INTERACTIVE, PRIORITY_PROOF, current_record
from service.traffic import Traffic
from service.watchdog import Pulse

__all__ = [
    "ChatCompletionRequest",
    "CompletionRequest",
    "Engine",
    "ErrorResponse",
    "MeteredClient",
    "Output",
    "Piece",
    "ResponsesRequest",
    "Sampling",
    "engine_errors",
    "tell_of_the_end",
    "try_chat",
    "with_sse_keep_alive",
]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    json_schema: Mapping[str, Any] | None = None
    chosen_logprobs: bool = False
    score_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class Output:
    """A finished answer. `logprobs` of the chosen tokens, `scores` of `score_ids`, in nats."""

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    logprobs: list[float] | None = None
    scores: list[dict[int, float]] | None = None


@dataclass(slots=True)
class Piece:
    """A part of a stream; the last one carries the whole output."""

    delta: str
    output: Output | None = None


class MeteredClient:
    """vLLM's engine client, counting tokens and the first token into the request's record."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self.traffic = Traffic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncIterator[RequestOutput]:
        """As `EngineClient.generate`; counts into the current record on the way."""
        record = current_record()
        outputs = self._client.generate(*args, **kwargs)
        if record is None:
            async for output in outputs:
                yield output
            return
        adapter = getattr(kwargs.get("lora_request"), "lora_name", None)
        kind = getattr(args[1] if len(args) > 1 else None, "output_kind", None)
        async with self.traffic.passing(record, adapter), contextlib.aclosing(outputs):
            meter = Meter(
                record,
                deltas=kind is RequestOutputKind.DELTA,
                whole=kind is RequestOutputKind.FINAL_ONLY,
            )
            try:
                async for output in outputs:
                    meter.count(output)
                    yield output
            except Exception as error:
                record.failed = True
                if isinstance(error, EngineDeadError):
                    raise EngineStopped from None
                raise


class Engine:
    """Token ids in, tokens out, for the base or for one version of an adapter."""

    def __init__(self, client: EngineClient, tokenizer: Tokenizer) -> None:
        self.client, self._unmetered = MeteredClient(client), client
        self.pulse = Pulse(client)
        self.renderer = Renderer(tokenizer)
        self.max_model_len: int = client.model_config.max_model_len
        self.dtype = str(client.model_config.dtype).removeprefix("torch.")
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    @property
    def traffic(self) -> Traffic:
        return self.client.traffic

    @property
    def dead(self) -> bool:
        """The engine has stopped, by itself or since the server ends."""
        return bool(self.client.errored)

    # prompts

    async def prompt_ids(self, template: PromptTemplate, task_input: TaskInput) -> list[int]:
        """Token ids of a prompt, [T], made off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._tokenising, self.renderer.prompt_ids, template, task_input
        )

    async def count(self, text: str) -> int:
        """How many tokens a text has."""
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._tokenising, self._encode, text)
        return len(ids)

    def _encode(self, text: str) -> list[int]:
        return self.renderer.tokenizer.encode(text, add_special_tokens=False)

    # generation

    async def generate(self, prompt_ids: list[int], sampling: Sampling, model: Resolved) -> Output:
        """One whole answer. Cancelling the caller frees the engine's slot."""
        params = _params(sampling, RequestOutputKind.FINAL_ONLY)
        async with self._running(prompt_ids, params, model) as outputs:
            return _output(await _last(outputs), sampling)

    async def stream(
        self, prompt_ids: list[int], sampling: Sampling, model: Resolved
    ) -> AsyncIterator[Piece]:
        """An answer piece by piece; the last piece carries all of it."""
        params = _params(sampling, RequestOutputKind.CUMULATIVE)
        sent = 0
        async with self._running(prompt_ids, params, model) as outputs:
            async for output in outputs:
                text = output.outputs[0].text
                done = _output(output, sampling) if output.finished else None
                yield Piece(text[sent:], done)
                sent = len(text)

    @contextlib.asynccontextmanager
    async def _running(
        self, prompt_ids: list[int], params: SamplingParams, model: Resolved
    ) -> AsyncIterator[AsyncIterator[RequestOutput]]:
        record = current_record()
        priority = PRIORITY_INTERACTIVE if record is None else record.priority
        outputs = self.client.generate(
            # a prefix cache shared between projects would tell what another one asked
            tokens_input(prompt_ids, cache_salt=None if record is None else record.project),
            params,
            f"task-{uuid4().hex}",
            lora_request=model.lora_request,
            priority=priority,
        )
        try:
            yield outputs
        finally:
            await outputs.aclose()  # type: ignore[attr-defined]

    # adapters in the engine

    async def load(self, engine_name: str, identifier: int, folder: str) -> LoRARequest:
        """Load a version; after any failure its id is removed and never used again.

        Raises:
            StoreFailed: its files are not there.
            ProofFailed: the engine refuses it.
        """
        request = LoRARequest(lora_name=engine_name, lora_int_id=identifier, lora_path=folder)
        try:
            await self.client.add_lora(request)
        except BaseException as error:
            # a failed load leaves an adapter that is listed and answers as the base
            with contextlib.suppress(Exception):
                await asyncio.shield(self.client.remove_lora(identifier))
            if isinstance(error, VLLMNotFoundError | FileNotFoundError):
                raise StoreFailed(
                    f"the files of {engine_name} went away during the load"
                ) from error
            if not isinstance(error, Exception) or self.client.errored:
                raise
            raise ProofFailed(
                f"the engine can't load it: {_first_line(error)}",
                hint="train it again with r and target_modules that this server takes",
            ) from error
        return request

    async def inspect(self, request: LoRARequest) -> Inspection:
        """What the workers took of a loaded version's file."""
        results = await self.client.collective_rpc(
            "inspect_adapter", args=(request.lora_int_id, request.lora_path)
        )
        return together(results)

    async def unload(self, request: LoRARequest) -> bool:
        """Remove a version that no request uses; whether the engine really let it go."""
        _, left = await asyncio.gather(  # in this order, and in one wait for the running step
            self.client.remove_lora(request.lora_int_id), self.client.list_loras()
        )
        return request.lora_int_id not in left

    async def probe(
        self,
        prompt_ids: list[int],
        token_ids: list[int],
        request: LoRARequest | None,
        *,
        priority: int = PRIORITY_PROOF,
    ) -> list[float]:
        """Log-probabilities of tokens after a prompt, [K] in nats, at low priority."""
        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=token_ids, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY, skip_reading_prefix_cache=True,
        )  # fmt: skip
        # a request that a load began for does not pay for its proof
        outputs = self._unmetered.generate(
            tokens_input(prompt_ids),
            params,
            f"proof-{uuid4().hex}",
            lora_request=request,
            priority=priority,
        )
        answer = (await _last(outputs)).outputs[0]
        if not answer.logprobs:
            raise EngineFailed("the engine gave no log-probabilities for a probe")
        first = answer.logprobs[0]
        return [first[token].logprob for token in token_ids]


def tell_of_the_end(client: Any) -> None:
    """Answer whoever still waits for an engine that has stopped."""
    client.output_processor.propagate_error(EngineDeadError())


async def try_chat(handler: Any, model: str) -> None:
    """Ask one of vLLM's chat handlers for a short streamed answer, of the base and for nobody."""
    request = ChatCompletionRequest(
        model=model, messages=[{"role": "user", "content": "a"}], max_tokens=2, stream=True
    )
    answer = await handler.create_chat_completion(request)
    if not isinstance(answer, ErrorResponse):
        async for _ in answer:
            pass


async def _last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    result: RequestOutput | None = None
    async for output in outputs:
        result = output
    if result is None:
        raise EngineFailed("the engine gave no answer", hint="try again")
    return result


def _params(sampling: Sampling, kind: RequestOutputKind) -> SamplingParams:
    scored = list(sampling.score_ids) if sampling.score_ids else None
    chosen = 0 if sampling.chosen_logprobs and scored is None else None
    schema = sampling.json_schema
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        stop=list(sampling.stop),
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logprobs=chosen,
        logprob_token_ids=scored,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=dict(schema)),
        output_kind=kind,
    )


def _output(result: RequestOutput, sampling: Sampling) -> Output:
    answer = result.outputs[0]
    token_ids = list(answer.token_ids)
    logprobs, scores = None, None
    if answer.logprobs is not None:
        steps: list[Any] = list(answer.logprobs)
        if sampling.chosen_logprobs:
            logprobs = [step[token].logprob for step, token in zip(steps, token_ids, strict=True)]
        if sampling.score_ids:
            scores = [
                {token: step[token].logprob for token in sampling.score_ids} for step in steps
            ]
    return Output(
        text=answer.text,
        token_ids=token_ids,
        finish_reason=answer.finish_reason or "stop",
        prompt_tokens=len(result.prompt_token_ids or ()),
        cached_tokens=result.num_cached_tokens or 0,
        logprobs=logprobs,
        scores=scores,
    )


def engine_errors() -> dict[type[Exception], Any]:
    """Handlers for what vLLM raises; none of its own texts about paths leaks."""

    def client(error: VLLMClientError) -> JSONResponse:
        param = getattr(error, "parameter", None)
        return error_response(
            400, _first_line(error), BadRequest.type, BadRequest.default_code, param
        )

    def not_found(error: VLLMNotFoundError) -> JSONResponse:
        return error_response(404, _first_line(error), BadRequest.type, "model_not_found", "model")

    def overloaded(error: GracefulHTTPError) -> JSONResponse:
        status = int(error.http_status)
        kind = "rate_limit_error" if status == 429 else "server_error"
        return error_response(status, _first_line(error), kind, "overloaded", None, "try again")

    def dead(_error: EngineDeadError) -> JSONResponse:
        return from_service(EngineStopped())

    def server(_error: VLLMServerError) -> JSONResponse:
        return error_response(
            500, "the engine failed on this request", EngineFailed.type, "engine_failed"
        )

    def value(error: ValueError) -> JSONResponse:
        return error_response(400, _first_line(error), BadRequest.type, BadRequest.default_code)

    return {
        VLLMNotFoundError: not_found,
        VLLMClientError: client,
        GracefulHTTPError: overloaded,
        EngineDeadError: dead,
        VLLMServerError: server,
        ValueError: value,
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:500]
