"""Adapters over HTTP: versions, aliases and their history, comparison, collection."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from adapters.diff import differences
from adapters.garbage import KEEP, OLDER_THAN_DAYS
from adapters.gate import overrule
from adapters.names import PRODUCTION, check_alias
from adapters.registry import AdapterRecord, Version
from adapters.rules import Rule
from adapters.trials import Trial
from service.body import CHECKED
from service.errors import BadRequest
from service.record import current_caller, current_project


async def own_adapter(raw_request: Request, name: str) -> None:
    """Let pass what the caller's project has.

    Raises:
        ModelNotFound: there is no such adapter, or it is another project's.
    """
    await raw_request.app.state.modiste.models.check_own(name, name)


router = APIRouter(dependencies=[CHECKED])
named = APIRouter(dependencies=[Depends(own_adapter)])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Rollback(_Body):
    """Which alias shall go back, and why."""

    alias: str = PRODUCTION
    why: str = Field(default="", max_length=1000)


class Promotion(Rollback):
    """Which version an alias shall point at."""

    version: int = Field(ge=1)
    force: bool = False
    """Also where another running server can't take it, or, with a reason, past a failed gate."""


class CanaryStart(Promotion):
    """Which version shall get a share of an alias's requests."""

    percent: float = Field(gt=0, lt=100)
    rule: Rule | None = Field(default=None, description="when it ends by itself")


class Feedback(_Body):
    """What somebody thought of an answer."""

    version: int = Field(ge=1, description="that made the answer")
    request_id: str = Field(min_length=1, max_length=128, description="the answer's `x-request-id`")
    score: float = Field(ge=0, le=1, description="0 useless, 1 as good as can be")


class CanaryEnd(Rollback):
    """Whether the canary's version is promoted or its share goes back."""

    promote: bool
    force: bool = False
    """As of a promotion."""


class Collection(_Body):
    """What garbage collection spares."""

    keep: int = Field(default=KEEP, ge=0)
    older_than_days: float = Field(default=OLDER_THAN_DAYS, ge=0)
    dry_run: bool = False


def _adapter(record: AdapterRecord) -> dict[str, Any]:
    return {
        "object": "adapter", "name": record.name, "task": record.task, "project": record.project,
        "created": int(record.created.timestamp()), "versions": record.versions,
        "aliases": record.aliases,
    }  # fmt: skip


def describe(version: Version) -> dict[str, Any]:
    """A version as the adapter routes answer it."""
    manifest = version.manifest
    return {
        "object": "adapter.version", "version": version.number, "reference": version.reference,
        "fine_tuned_model": version.fine_tuned_model, "checkpoint": manifest.checkpoint,
        "digest": version.digest, "state": version.state, "reason": version.reason or None,
        "created": int(manifest.created.timestamp()), "bytes": manifest.size,
        "languages": manifest.languages, "labels": manifest.labels, "base": manifest.base.name,
        "metrics": {name: metric.model_dump() for name, metric in manifest.metrics.items()},
        "gate": None if manifest.gate is None else manifest.gate.model_dump(),
    }  # fmt: skip


def describe_trial(trial: Trial) -> dict[str, Any]:
    """A canary that runs, and what both sides answered so far."""
    sides = [
        {
            "version": number, "answers": side.answers, "errors": side.errors,
            "median_s": side.quantile(0.5), "p95_s": side.quantile(0.95),
            "scores": side.scores, "mean_score": side.mean_score,
        }
        for number, side in trial.sides.items()
    ]  # fmt: skip
    return {
        "version": trial.number, "percent": trial.percent,
        "started": int(trial.started.timestamp()),
        "rule": None if trial.rule is None else trial.rule.model_dump(), "sides": sides,
    }  # fmt: skip


@router.get("/v1/adapters")
async def list_adapters(raw_request: Request) -> JSONResponse:
    """The project's adapters with their aliases."""
    records = await asyncio.to_thread(raw_request.app.state.modiste.registry.adapters)
    own = [_adapter(record) for record in records if record.project == current_project()]
    return JSONResponse({"object": "list", "data": own})


@named.get("/v1/adapters/{name}")
async def show_adapter(name: str, raw_request: Request) -> JSONResponse:
    """One adapter with its versions."""
    state = raw_request.app.state.modiste
    versions = await asyncio.to_thread(state.registry.versions, name)
    aliases = await asyncio.to_thread(state.registry.aliases, name)
    live = {a: v.number for (n, a), v in state.models.live().items() if n == name}
    failures = {a: why for (n, a), why in state.models.failures().items() if n == name}
    trials = await asyncio.to_thread(state.registry.trials)
    canaries = {alias: describe_trial(t) for (n, alias), t in trials.items() if n == name}
    return JSONResponse(
        {
            "object": "adapter", "name": name, "aliases": aliases, "served": live,
            "not_served": failures,
            "canaries": canaries,
            "versions": [describe(version) for version in versions],
        }
    )  # fmt: skip


@named.get("/v1/adapters/{name}/versions/{version}")
async def show_version(name: str, version: int, raw_request: Request) -> JSONResponse:
    """One version: its whole manifest, its state, and the reason when it is not served."""
    state = raw_request.app.state.modiste
    found = await asyncio.to_thread(state.registry.find, f"{name}@{version}")
    manifest = found.manifest.model_dump(mode="json")
    proof = state.residency.proof_of(found)
    here = {
        "loaded": state.residency.is_loaded(found),
        "proof": None if proof is None else asdict(proof),
    }
    return JSONResponse({**describe(found), "manifest": manifest, "here": here})


@named.post("/v1/adapters/{name}/versions/{version}/verify")
async def verify(name: str, version: int, raw_request: Request) -> JSONResponse:
    """Check every file of a version against its digest, now."""
    registry = raw_request.app.state.modiste.registry
    found = await asyncio.to_thread(registry.verified, f"{name}@{version}")
    return JSONResponse({**describe(found), "verified": True})


@named.post("/v1/adapters/{name}/versions/{version}/unload")
async def unload(name: str, version: int, raw_request: Request) -> JSONResponse:
    """Free a version's place here once its requests have ended; the next one loads it again."""
    state = raw_request.app.state.modiste
    found = await asyncio.to_thread(state.registry.find, f"{name}@{version}")
    was_loaded = await state.residency.drain(found)
    return JSONResponse({**describe(found), "was_loaded": was_loaded})


@named.get("/v1/adapters/{name}/history")
async def history(name: str, raw_request: Request) -> JSONResponse:
    """Every move of the adapter's aliases, and what was retired, oldest first."""
    moves = await asyncio.to_thread(raw_request.app.state.modiste.registry.alias_history, name)
    data = [
        {
            "object": "adapter.alias_move", "alias": None if move.retired else move.alias,
            "from": move.from_number, "to": None if move.retired else move.to_number,
            "rollback": move.rollback, "percent": move.percent, "retired": move.retired,
            "who": move.who, "why": move.why,
            "moved": int(move.moved.timestamp()),
        }
        for move in moves
    ]  # fmt: skip
    return JSONResponse({"object": "list", "data": data})


@named.get("/v1/adapters/{name}/diff")
async def diff(
    name: str,
    raw_request: Request,
    left: Annotated[int, Query(alias="from", ge=1)],
    right: Annotated[int, Query(alias="to", ge=1)],
) -> JSONResponse:
    """What differs between two versions: configuration, data, metrics."""
    registry = raw_request.app.state.modiste.registry
    versions = [
        await asyncio.to_thread(registry.find, f"{name}@{number}") for number in (left, right)
    ]
    data = [
        {"field": d.field, "from": d.left, "to": d.right}
        for d in differences(versions[0], versions[1])
    ]
    return JSONResponse({"object": "list", "data": data})


@named.post("/v1/adapters/{name}/promote")
async def promote(name: str, promotion: Promotion, raw_request: Request) -> JSONResponse:
    """Move an alias; answers once this server loaded and proved the version and serves it."""
    check_alias(promotion.alias)
    state = raw_request.app.state.modiste
    version = await asyncio.to_thread(state.registry.find, f"{name}@{promotion.version}")
    overrule(version, force=promotion.force, why=promotion.why)  # before it takes a place
    await state.residency.ensure(version)
    await asyncio.to_thread(
        state.registry.promote, version.reference, promotion.alias,
        who=current_caller(), why=promotion.why, force=promotion.force,
    )  # fmt: skip
    return await _in_effect(state, version, promotion.alias)


@named.post("/v1/adapters/{name}/rollback")
async def rollback(name: str, request: Rollback, raw_request: Request) -> JSONResponse:
    """Move an alias back to the version before; answers once this server serves it."""
    state = raw_request.app.state.modiste
    version = await asyncio.to_thread(state.registry.previous, name, request.alias)
    await state.residency.ensure(version)
    version = await asyncio.to_thread(
        state.registry.rollback, name, request.alias, who=current_caller(), why=request.why
    )
    return await _in_effect(state, version, request.alias)


@named.post("/v1/adapters/{name}/canary")
async def start_canary(name: str, start: CanaryStart, raw_request: Request) -> JSONResponse:
    """Give a version a share of an alias's requests; answers once this server does so."""
    check_alias(start.alias)
    state = raw_request.app.state.modiste
    version = await asyncio.to_thread(state.registry.find, f"{name}@{start.version}")
    await state.residency.ensure(version)
    await asyncio.to_thread(
        state.registry.start_canary, version.reference, start.percent, start.alias,
        rule=start.rule, who=current_caller(), why=start.why, force=start.force,
    )  # fmt: skip
    await state.models.catch_up()
    return JSONResponse({**describe(version), "percent": start.percent})


@named.post("/v1/adapters/{name}/canary/end")
async def end_canary(name: str, end: CanaryEnd, raw_request: Request) -> JSONResponse:
    """End an alias's canary: by promotion of its version, or by giving its share back."""
    state = raw_request.app.state.modiste
    version = await asyncio.to_thread(
        state.registry.end_canary, name, end.alias, promote=end.promote, who=current_caller(),
        why=end.why, force=end.force,
    )  # fmt: skip
    return await _in_effect(state, version, end.alias)


@named.post("/v1/adapters/{name}/feedback")
async def feedback(name: str, opinion: Feedback, raw_request: Request) -> JSONResponse:
    """Keep a score of an answer; a second one for the same answer replaces it."""
    await asyncio.to_thread(
        raw_request.app.state.modiste.registry.score,
        name, opinion.version, opinion.score, request_id=opinion.request_id, who=current_caller(),
    )  # fmt: skip
    return JSONResponse({"object": "adapter.feedback", **opinion.model_dump()})


@router.post("/v1/adapters/gc")
async def collect(request: Collection, raw_request: Request) -> JSONResponse:
    """Remove the files of the project's old versions that nothing refers to."""
    collected = await asyncio.to_thread(
        raw_request.app.state.modiste.registry.collect,
        keep=request.keep, older_than_days=request.older_than_days, dry_run=request.dry_run,
        project=current_project(),
    )  # fmt: skip
    return JSONResponse(
        {
            "object": "adapter.collection", "dry_run": request.dry_run,
            "versions": collected.versions, "leftovers": collected.leftovers,
            "bytes": collected.size,
        }
    )  # fmt: skip


async def _in_effect(state: Any, version: Version, alias: str) -> JSONResponse:
    await state.models.catch_up()
    failure = state.models.failures().get((version.name, alias))
    if failure is not None:
        raise BadRequest(failure, param="version", code="not_served")
    return JSONResponse(describe(version))


router.include_router(named)
