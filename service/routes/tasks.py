"""The task routes: check the request, find the model, ask the engine, answer as JSON or events."""

from collections.abc import Sequence
from time import time
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from adapters.prompt import Task
from service.admission.entry import admit
from service.body import CHECKED, JsonRoute
from service.callers import with_cancellation
from service.constraints import of_schema
from service.documents import answers
from service.models import Resolved
from service.tasks import answer, classify, generate, sources, translate
from service.tasks.responses import (
    AnswerResult,
    ClassifyResult,
    GenerateResult,
    ResultT,
    TaskResponse,
    TranslateResult,
    total,
)
from service.tasks.streams import respond
from service.tasks.wire import (
    AnswerRequest,
    ClassifyRequest,
    GenerateRequest,
    TranslateRequest,
)

router = APIRouter(tags=["tasks"], dependencies=[CHECKED], route_class=JsonRoute)


def _body(task: Task, model: Resolved, results: Sequence[ResultT]) -> JSONResponse:
    body = TaskResponse(
        id=f"{task}-{uuid4().hex}",
        object=task,
        created=int(time()),
        model=model.reference,
        results=list(results),
        usage=total(results),
    )
    return JSONResponse(body.model_dump(mode="json"))


@router.post(
    "/v1/generate",
    response_model=None,
    responses=answers(TaskResponse[GenerateResult], streams=True),
)
@with_cancellation
async def generate_text(request: GenerateRequest, raw_request: Request) -> Response:
    """Go on from a prompt, or answer in a JSON schema."""
    modiste = raw_request.app.state.modiste
    asked = generate.check(request)
    if request.json_schema is not None:
        await modiste.grammars.check([of_schema(request.json_schema)])
    model = await modiste.models.resolve(request.model, task="generate")
    await admit(
        raw_request, calls=len(asked.prompts), most=request.max_tokens, timeout_s=request.timeout_s
    )
    if request.stream:
        return await respond(generate.stream(asked, modiste.engine, model))
    return _body("generate", model, await generate.run(asked, modiste.engine, model))


@router.post(
    "/v1/translate",
    response_model=None,
    responses=answers(TaskResponse[TranslateResult], streams=True),
)
@with_cancellation
async def translate_text(request: TranslateRequest, raw_request: Request) -> Response:
    """Translate text; placeholders, markup and white space come through."""
    modiste = raw_request.app.state.modiste
    asked = translate.check(request)
    model, found = await sources.resolve(
        asked.texts, asked.source_lang, asked.target_lang, request.model, modiste.models
    )
    await admit(
        raw_request, calls=translate.calls(asked), most=request.max_tokens,
        timeout_s=request.timeout_s,
    )  # fmt: skip
    if request.stream:
        return await respond(translate.stream(asked, found[0], modiste.engine, model))
    return _body("translate", model, await translate.run(asked, found, modiste.engine, model))


@router.post(
    "/v1/answer",
    response_model=None,
    responses=answers(TaskResponse[AnswerResult], streams=True),
)
@with_cancellation
async def answer_question(request: AnswerRequest, raw_request: Request) -> Response:
    """Answer a question from contexts, with where they say it; or without any."""
    modiste = raw_request.app.state.modiste
    asked = answer.check(request)
    model = await modiste.models.resolve(request.model, task="answer")
    await admit(
        raw_request, calls=len(asked.questions) * max(1, len(asked.contexts)),
        most=request.max_tokens, timeout_s=request.timeout_s,
    )  # fmt: skip
    if request.stream:
        return await respond(answer.stream(asked, modiste.engine, model))
    return _body("answer", model, await answer.run(asked, modiste.engine, model))


@router.post(
    "/v1/classify",
    response_model=None,
    responses=answers(TaskResponse[ClassifyResult]),
)
@with_cancellation
async def classify_text(request: ClassifyRequest, raw_request: Request) -> Response:
    """Tell a label and how probable every label is."""
    modiste = raw_request.app.state.modiste
    asked = classify.check(request)
    model = await modiste.models.resolve(request.model, task="classify", labels=asked.labels)
    await admit(raw_request, calls=len(asked.texts), most=1, timeout_s=request.timeout_s)
    return _body("classify", model, await classify.run(asked, modiste.engine, model))
