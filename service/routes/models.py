"""OpenAI's models: what can be named in a request, and what a caller takes out of use."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from openai.types import Model, ModelDeleted

from service.documents import ModelList, answers
from service.errors import ModelNotFound
from service.jobs.made import MadeModel, made_models
from service.models import Models, Resolved
from service.objects import seconds
from service.record import current_project

router = APIRouter()


@router.get("/v1/models", responses=answers(ModelList))
async def list_models(raw_request: Request) -> JSONResponse:
    """The models that can be named in a request."""
    return JSONResponse({"object": "list", "data": await _cards(raw_request)})


@router.get("/v1/models/{model:path}", responses=answers(Model))
async def retrieve_model(model: str, raw_request: Request) -> JSONResponse:
    """One model, by any name that resolves."""
    for card in await _cards(raw_request):
        if card["id"] == model:
            return JSONResponse(card)
    models: Models = raw_request.app.state.modiste.models
    version = await models.look_up(model)
    if version is None:
        raise ModelNotFound(
            f"the model {model[:120]!r} does not exist", param="model",
            hint="GET /v1/models lists the models",
        )  # fmt: skip
    manifest = version.manifest
    card = _card(Resolved(version.reference, version.digest, "", version), model)
    card |= {"task": manifest.task, "parent": models.base.reference}
    if model.startswith("ft:"):
        card |= {"owned_by": manifest.project, "parent": manifest.base.name}
    return JSONResponse(card)


@router.delete("/v1/models/{model:path}", responses=answers(ModelDeleted))
async def delete_model(model: str, raw_request: Request) -> JSONResponse:
    """Take a version out of use: from here on it does not exist for a request."""
    await raw_request.app.state.modiste.models.retire(model)
    return JSONResponse({"id": model, "object": "model", "deleted": True})


async def _cards(raw_request: Request) -> list[dict[str, Any]]:
    """The base, every alias in effect, then what the project's fine-tuning jobs made.

    `name` stands for `name@production`.
    """
    state = raw_request.app.state.modiste
    base = state.models.base
    cards = [{**_card(base, base.reference), "max_model_len": state.engine.max_model_len}]
    for (name, alias), version in sorted(state.models.live().items()):
        public = name if alias == "production" else f"{name}@{alias}"
        card = _card(Resolved(version.reference, version.digest, "proved", version), public)
        cards.append({**card, "parent": base.reference, "task": version.manifest.task})
    project = current_project()
    made = await asyncio.to_thread(made_models, state.registry.database, project)
    return cards + [_made_card(model, project) for model in made]


def _card(resolved: Resolved, name: str) -> dict[str, Any]:
    created = None if resolved.version is None else resolved.version.manifest.created
    return {
        "id": name, "object": "model", "created": seconds(created) or 0, "owned_by": "modiste",
        "root": resolved.reference, "parent": None, "digest": resolved.digest, "task": None,
    }  # fmt: skip


def _made_card(model: MadeModel, project: str) -> dict[str, Any]:
    card = _card(Resolved(model.reference, model.digest, ""), model.id)
    return card | {
        "created": seconds(model.created), "owned_by": project, "parent": model.base,
        "task": model.task,
    }  # fmt: skip
