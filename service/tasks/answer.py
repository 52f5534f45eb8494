"""An answer to a question, from contexts or from the model alone.

Every context is asked by itself, a long one in overlapping windows, all as one
batch; the answer that the model is surest of wins.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.prompt import AnswerInput, PromptTemplate
from service.engine import Output, Sampling
from service.errors import BadRequest, TooLarge
from service.tasks import evidence, windows
from service.tasks.batch import mean_probability, together, usage_of
from service.tasks.responses import AnswerResult, Evidence
from service.tasks.streams import Delta, Done, Event, pieces
from service.tasks.wire import AnswerRequest, check_size

if TYPE_CHECKING:
    from service.engine import Engine
    from service.models import Resolved

MAX_PROMPTS = 4096  # of one request: questions times windows
MAX_EVIDENCE = 16
MIN_WINDOW = 64  # tokens of context below which a window says too little
SLACK = 48  # tokens: a window's text can be longer than its share of the whole


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A valid request; without contexts the model answers from what it knows."""

    questions: tuple[str, ...]
    contexts: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class _Window:
    """Characters `start` to `end` of a context and the prompt that asks about them."""

    context: int
    start: int
    end: int
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True)
class _Reply:
    window: _Window
    output: Output
    text: str
    answerable: bool
    confidence: float


def check(request: AnswerRequest) -> Inquiry:
    """Raises BadRequest: several questions to stream; TooLarge: too much text."""
    check_size(request.question, "question")
    contexts = () if request.context is None else request.context
    check_size(contexts, "context")
    if request.stream and len(request.question) > 1:
        raise _no_stream("several questions cannot be streamed", "question")
    if request.stream and len(contexts) > 1:
        raise _no_stream("an answer from several contexts cannot be streamed", "context")
    return Inquiry(request.question, contexts, request.max_tokens)


def _no_stream(message: str, param: str) -> BadRequest:
    return BadRequest(message, param=param, hint="leave stream out: the best answer is known last")


async def run(asked: Inquiry, engine: "Engine", model: "Resolved") -> list[AnswerResult]:
    """One result for each question, in order, from one batch."""
    template = model.template("answer")
    per_question = await together(
        _windows(question, asked, engine, template) for question in asked.questions
    )
    prompts = sum(map(len, per_question))
    if prompts > MAX_PROMPTS:
        raise TooLarge(
            f"questions and contexts make {prompts} prompts, more than {MAX_PROMPTS}",
            param="context",
            hint="send them in several requests",
        )
    return await together(
        _answer(index, found, asked, engine, model) for index, found in enumerate(per_question)
    )


async def stream(
    asked: Inquiry, engine: "Engine", model: "Resolved"
) -> AsyncGenerator[Event, None]:
    """Pieces of one answer as they come, then the whole result with its evidence.

    Raises:
        BadRequest: the context is longer than one window.
    """
    all_windows = await _windows(asked.questions[0], asked, engine, model.template("answer"))
    if len(all_windows) > 1:
        raise _no_stream("the context is longer than the model's window", "context")
    window = all_windows[0]
    sampling = _sampling(engine, window, asked.max_tokens)
    async with aclosing(pieces(engine, window.prompt_ids, sampling, model)) as found:
        async for piece in found:
            if piece.delta:
                yield Delta(0, piece.delta)
            if piece.output is not None:
                yield Done(_result(0, [_reply(window, piece.output, model)], asked))


async def _windows(
    question: str, asked: Inquiry, engine: "Engine", template: PromptTemplate
) -> list[_Window]:
    if not asked.contexts:
        prompt_ids = await engine.prompt_ids(template, AnswerInput(question))
        return [_Window(0, 0, 0, prompt_ids)]
    per_context = await together(
        _windows_of(question, number, asked, engine, template)
        for number in range(len(asked.contexts))
    )
    return [window for found in per_context for window in found]


async def _windows_of(
    question: str, number: int, asked: Inquiry, engine: "Engine", template: PromptTemplate
) -> list[_Window]:
    """One window if question, context and answer fit together, else as many as it takes."""
    context = asked.contexts[number]
    prompt_ids = await engine.prompt_ids(template, AnswerInput(question, context))
    if len(prompt_ids) + asked.max_tokens <= engine.max_model_len:
        return [_Window(number, 0, len(context), prompt_ids)]
    around = len(await engine.prompt_ids(template, AnswerInput(question, "")))
    size = engine.max_model_len - around - asked.max_tokens - SLACK
    if size < MIN_WINDOW:
        raise BadRequest(
            f"question and prompt take {around} tokens and the answer up to {asked.max_tokens}; "
            f"the model's window of {engine.max_model_len} has no room for the context",
            param="question",
            hint="shorten the question or lower max_tokens",
            code="context_length_exceeded",
        )
    spans = windows.walk(context, await windows.token_starts(engine, context), size)
    prompts = await together(
        engine.prompt_ids(template, AnswerInput(question, context[start:end]))
        for start, end in spans
    )
    return [
        _Window(number, start, end, ids)
        for (start, end), ids in zip(spans, prompts, strict=True)
    ]  # fmt: skip


async def _answer(
    index: int, found: Sequence[_Window], asked: Inquiry, engine: "Engine", model: "Resolved"
) -> AnswerResult:
    outputs = await together(
        engine.generate(window.prompt_ids, _sampling(engine, window, asked.max_tokens), model)
        for window in found
    )
    replies = [_reply(window, output, model) for window, output in zip(found, outputs, strict=True)]
    return _result(index, replies, asked)


def _sampling(engine: "Engine", window: _Window, max_tokens: int) -> Sampling:
    room = windows.room(engine, window.prompt_ids, max_tokens, "question")
    return Sampling(max_tokens=room, chosen_logprobs=True)


def _reply(window: _Window, output: Output, model: "Resolved") -> _Reply:
    text = output.text.strip()
    said = evidence.normalised(text)
    silent = evidence.normalised(model.template("answer").unanswerable)
    return _Reply(window, output, text, said not in ("", silent), mean_probability(output))


def _result(index: int, replies: Sequence[_Reply], asked: Inquiry) -> AnswerResult:
    """The surest supported answer; when no window supports one, the least sure refusal."""
    supported = [reply for reply in replies if reply.answerable]
    if supported:
        best = max(supported, key=lambda reply: reply.confidence)
    else:
        best = min(replies, key=lambda reply: reply.confidence)
    return AnswerResult(
        index=index,
        answer=best.text,
        answerable=best.answerable if asked.contexts else None,
        confidence=best.confidence,
        evidence=_evidence(best, supported, asked.contexts),
        finish_reason=best.output.finish_reason,
        usage=usage_of(reply.output for reply in replies),
    )


def _evidence(best: _Reply, supported: Sequence[_Reply], contexts: Sequence[str]) -> list[Evidence]:
    """Where the windows that gave this answer say it, else the sentence nearest to it."""
    if not contexts or not best.answerable:
        return []
    wanted = evidence.normalised(best.text)
    agreeing = [reply.window for reply in supported if evidence.normalised(reply.text) == wanted]
    spans = {
        (window.context, window.start + start, window.start + end)
        for window in agreeing
        for start, end in evidence.occurrences(
            best.text, contexts[window.context][window.start : window.end]
        )
    }
    if not spans:
        window = best.window
        text = contexts[window.context][window.start : window.end]
        nearest = evidence.best_sentence(best.text, text)
        if nearest is not None:
            start, end = nearest
            spans = {(window.context, window.start + start, window.start + end)}
    return [
        Evidence(context=context, start=start, end=end, text=contexts[context][start:end])
        for context, start, end in sorted(spans)[:MAX_EVIDENCE]
    ]
