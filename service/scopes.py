"""What a key may do: its scopes, and those that each route and each purpose of a file asks for.

A route is closed to a key that has none of the scopes in its row. What decides for all callers
which weights answer, what occupies an engine that others use, and what is removed, is for `admin`;
what makes or reads training data and versions is for `train`; what asks a model is for `infer`.
"""

from collections.abc import Collection, Iterable
from enum import StrEnum

from service.errors import PermissionDenied
from service.record import current_record


class Scope(StrEnum):
    """One kind of what a key may do; none contains another."""

    INFER = "infer"
    TRAIN = "train"
    ADMIN = "admin"


Scopes = frozenset[Scope]

ALL: Scopes = frozenset(Scope)
DEFAULT: Scopes = frozenset({Scope.INFER, Scope.TRAIN})
"""Of a key that is made without naming any."""
INFER: Scopes = frozenset({Scope.INFER})
TRAIN: Scopes = frozenset({Scope.TRAIN})
ADMIN: Scopes = frozenset({Scope.ADMIN})
TRAIN_OR_ADMIN = TRAIN | ADMIN

PUBLIC = frozenset({"/health/live", "/health/ready", "/metrics", "/version"})
"""Answered without a key: probes and scrapers have none."""

ROUTES: dict[tuple[str, str], Scopes] = {
    ("POST", "/v1/chat/completions"): INFER,
    ("POST", "/v1/completions"): INFER,
    ("POST", "/v1/responses"): INFER,
    ("POST", "/v1/generate"): INFER,
    ("POST", "/v1/translate"): INFER,
    ("POST", "/v1/answer"): INFER,
    ("POST", "/v1/classify"): INFER,
    # each key needs the names of models, and may see what its project used
    ("GET", "/v1/models"): ALL,
    ("GET", "/v1/models/{model:path}"): ALL,
    ("GET", "/v1/usage"): ALL,
    ("GET", "/v1/audit"): ADMIN,
    ("GET", "/openapi.json"): ALL,
    # files: each of these also asks for the scope of the file's purpose
    ("POST", "/v1/files"): DEFAULT,
    ("GET", "/v1/files"): DEFAULT,
    ("GET", "/v1/files/{file_id}"): DEFAULT,
    ("DELETE", "/v1/files/{file_id}"): DEFAULT,
    ("GET", "/v1/files/{file_id}/content"): DEFAULT,
    ("POST", "/v1/uploads"): DEFAULT,
    ("POST", "/v1/uploads/{upload_id}/parts"): DEFAULT,
    ("POST", "/v1/uploads/{upload_id}/complete"): DEFAULT,
    ("POST", "/v1/uploads/{upload_id}/cancel"): DEFAULT,
    # a job that promotes what it made also asks for admin
    ("POST", "/v1/fine_tuning/jobs"): TRAIN,
    ("GET", "/v1/fine_tuning/jobs"): TRAIN,
    ("GET", "/v1/fine_tuning/jobs/{job_id}"): TRAIN,
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): TRAIN,
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"): TRAIN,
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"): TRAIN,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"): TRAIN,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): TRAIN,
    ("POST", "/v1/batches"): INFER,
    ("GET", "/v1/batches"): INFER,
    ("GET", "/v1/batches/{batch_id}"): INFER,
    ("POST", "/v1/batches/{batch_id}/cancel"): INFER,
    # who is answered says whether the answer was any good
    ("POST", "/v1/adapters/{name}/feedback"): INFER,
    # manifests tell of training data, exports are the weights
    ("GET", "/v1/adapters"): TRAIN_OR_ADMIN,
    ("GET", "/v1/adapters/{name}"): TRAIN_OR_ADMIN,
    ("GET", "/v1/adapters/{name}/versions/{version}"): TRAIN_OR_ADMIN,
    ("GET", "/v1/adapters/{name}/history"): TRAIN_OR_ADMIN,
    ("GET", "/v1/adapters/{name}/diff"): TRAIN_OR_ADMIN,
    ("GET", "/v1/adapters/{name}/versions/{version}/export"): TRAIN_OR_ADMIN,
    ("POST", "/v1/adapters/{name}/versions/{version}/verify"): TRAIN_OR_ADMIN,
    # versions that no alias points at, as a job makes one
    ("POST", "/v1/adapters/merge"): TRAIN,
    ("DELETE", "/v1/models/{model:path}"): TRAIN_OR_ADMIN,
    # weights from elsewhere
    ("POST", "/v1/adapters/import"): ADMIN,
    ("POST", "/v1/adapters/{name}/versions/{version}/unload"): ADMIN,
    ("POST", "/v1/adapters/{name}/promote"): ADMIN,
    ("POST", "/v1/adapters/{name}/rollback"): ADMIN,
    ("POST", "/v1/adapters/{name}/canary"): ADMIN,
    ("POST", "/v1/adapters/{name}/canary/end"): ADMIN,
    ("POST", "/v1/adapters/gc"): ADMIN,
}
"""Methods and templates of routes; any one of the scopes opens."""

PURPOSES: dict[str, Scopes] = {
    "fine-tune": TRAIN,
    "fine-tune-results": TRAIN,
    "evals": TRAIN,
    "batch": INFER,
    "batch_output": INFER,
    "user_data": DEFAULT,
}
"""Purposes of files: what calls a model must not hand out what it was trained on."""


def check_routes(served: Iterable[tuple[str, str]]) -> None:
    """Each route that is served has its row.

    Raises:
        RuntimeError: one would be open to every key.
    """
    missing = [
        f"{method} {path}"
        for method, path in served
        if path not in PUBLIC and (method, path) not in ROUTES
    ]
    if missing:
        raise RuntimeError(f"no scope is named for {', '.join(missing)}")


def check_route(scopes: Scopes, method: str, template: str) -> None:
    """Let a key pass that may use a route; a method that no route has is answered there.

    Raises:
        PermissionDenied: it has none of the route's scopes.
    """
    needed = ROUTES.get((method, template))
    if needed is not None and not scopes & needed:
        raise _denied(f"{method} {template.replace(':path', '')}", needed)


def check_scope(needed: Scopes, what: str, param: str | None = None) -> None:
    """Let the caller of this request pass if it has one of the scopes.

    Args:
        what: needs it.

    Raises:
        PermissionDenied: it has none.
    """
    if not current_scopes() & needed:
        raise _denied(what, needed, param)


def check_purpose(purpose: str, param: str | None = None) -> None:
    """Let the caller of this request pass if it may use files of a purpose.

    Raises:
        PermissionDenied: it may not.
    """
    check_scope(PURPOSES[purpose], f"a file with the purpose {purpose}", param)


def purposes(wanted: str | None) -> Collection[str]:
    """Of files that the caller of this request may see, of these the wanted one, or all."""
    own = current_scopes()
    return [
        purpose
        for purpose, needed in PURPOSES.items()
        if own & needed and wanted in (None, purpose)
    ]


def current_scopes() -> Scopes:
    """Those of the caller. Raises RuntimeError outside of a request."""
    record = current_record()
    if record is None:
        raise RuntimeError("no request is being answered")
    return record.scopes


def in_order(scopes: Iterable[str]) -> list[str]:
    """As they are told."""
    known = list(Scope)
    return sorted(scopes, key=lambda scope: known.index(Scope(scope)))


def _denied(what: str, needed: Scopes, param: str | None = None) -> PermissionDenied:
    names = in_order(needed)
    options = " or ".join(f"`--scope {name}`" for name in names)
    return PermissionDenied(
        f"{what} needs the scope {' or '.join(names)}, which this API key has not",
        param=param, hint=f"ask for a key that is made with `modiste keys create` and {options}",
    )  # fmt: skip
