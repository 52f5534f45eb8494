"""The errors that callers see, and the one place where they become HTTP answers.

    ServiceError                 status  type
    ├── BadRequest               400     invalid_request_error
    ├── Unauthenticated          401     authentication_error
    ├── PermissionDenied         403     permission_error
    ├── ModelNotFound            404     invalid_request_error
    ├── FileNotFound             404     invalid_request_error
    ├── UploadNotFound           404     invalid_request_error
    ├── JobNotFound              404     invalid_request_error
    ├── BatchNotFound            404     invalid_request_error
    ├── RouteNotFound            404     invalid_request_error
    ├── TooSlow                  408     invalid_request_error
    ├── InUse                    409     invalid_request_error
    ├── TooLarge                 413     invalid_request_error
    ├── UnsupportedMedia         415     invalid_request_error
    ├── Overloaded               429     rate_limit_error
    ├── RateLimited              429     rate_limit_error
    ├── EngineFailed             500     server_error
    └── NotReady                 503     server_error
        └── EngineStopped        503     server_error

The body has OpenAI's shape plus `hint`. Errors of `adapters` are mapped by type.
"""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from adapters.errors import AdapterError, NotFound, StoreFailed, VersionInUse
from service.record import current_record

logger = logging.getLogger("modiste.errors")


class ServiceError(Exception):
    """An error with its status, and a hint that says what to do."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, hint: str = "", code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.hint = message, param, hint
        self.code = self.default_code if code is None else code


class BadRequest(ServiceError):
    status, type, default_code = 400, "invalid_request_error", "invalid_value"


class Unauthenticated(ServiceError):
    status, type, default_code = 401, "authentication_error", "invalid_api_key"


class PermissionDenied(ServiceError):
    status, type, default_code = 403, "permission_error", "insufficient_permissions"


class ModelNotFound(ServiceError):
    status, type, default_code = 404, "invalid_request_error", "model_not_found"


class FileNotFound(ServiceError):
    status, type, default_code = 404, "invalid_request_error", "file_not_found"


class UploadNotFound(ServiceError):
    status, type, default_code = 404, "invalid_request_error", "upload_not_found"


class JobNotFound(ServiceError):
    status, type, default_code = 404, "invalid_request_error", "fine_tuning_job_not_found"


class BatchNotFound(ServiceError):
    status, type, default_code = 404, "invalid_request_error", "batch_not_found"


class TooSlow(ServiceError):
    """The connection can't go on: the rest of the request would be read as another one."""

    status, type, default_code = 408, "invalid_request_error", "request_timeout"


class InUse(ServiceError):
    status, type, default_code = 409, "invalid_request_error", "in_use"


class RouteNotFound(ServiceError):
    status, type, default_code = 404, "invalid_request_error", "unknown_url"


class TooLarge(ServiceError):
    status, type, default_code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMedia(ServiceError):
    status, type, default_code = 415, "invalid_request_error", "unsupported_media_type"


class Overloaded(ServiceError):
    """With the seconds after which to try again, and what the queue is like."""

    status, type, default_code, retryable = 429, "rate_limit_error", "overloaded", True

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str = "",
        code: str | None = None,
        retry_after_s: int = 1,
        queue: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, param=param, hint=hint, code=code)
        self.retry_after_s, self.queue = retry_after_s, queue


class RateLimited(ServiceError):
    """With the seconds after which to try again."""

    status, type, default_code, retryable = 429, "rate_limit_error", "rate_limit_exceeded", True

    def __init__(self, message: str, *, retry_after_s: int, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class EngineFailed(ServiceError):
    status, default_code = 500, "engine_failed"


class NotReady(ServiceError):
    status, default_code, retryable = 503, "not_ready", True


class EngineStopped(NotReady):
    """The server ends, and another has to answer."""

    default_code = "engine_dead"

    def __init__(self) -> None:
        super().__init__("the engine has stopped", hint="try again in a minute")


def error_response(
    status: int, message: str, kind: str, code: str, param: str | None = None, hint: str = ""
) -> JSONResponse:
    """An answer in OpenAI's error shape."""
    record = current_record()
    if record is not None:
        record.error_code = code
    error = {"message": message, "type": kind, "param": param, "code": code, "hint": hint or None}
    headers = {"retry-after": "1"} if status in (429, 503) else None
    if status == TooSlow.status:
        headers = {"connection": "close"}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def from_service(error: ServiceError) -> JSONResponse:
    response = error_response(
        error.status, error.message, error.type, error.code, error.param, error.hint
    )
    if isinstance(error, RateLimited):
        response.headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Overloaded):
        return _with_queue(response, error)
    return response


def _with_queue(response: JSONResponse, error: Overloaded) -> JSONResponse:
    body = json.loads(bytes(response.body))
    if error.queue is not None:
        body["error"]["queue"] = error.queue
    headers = {"retry-after": str(error.retry_after_s)}
    return JSONResponse(body, status_code=response.status_code, headers=headers)


def from_adapter(error: AdapterError) -> JSONResponse:
    """Unknown names are 404, what is in use 409, a failed store 503, all else the caller's 400."""
    if isinstance(error, NotFound):
        status, kind, code = 404, "invalid_request_error", "model_not_found"
    elif isinstance(error, VersionInUse):
        status, kind, code = 409, "invalid_request_error", error.code
    elif isinstance(error, StoreFailed):
        status, kind, code = 503, "server_error", error.code
    else:
        status, kind, code = 400, "invalid_request_error", error.code
    return error_response(status, error.message, kind, code, error.param, error.hint)


def from_validation(error: RequestValidationError) -> JSONResponse:
    """Name the first wrong field and its value; count the others."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        message = f"the body is not valid JSON: {detail} at character {first['loc'][-1]}"
        return error_response(400, message, "invalid_request_error", "invalid_json")
    places = [part for part in first["loc"] if part != "body"]
    param = ".".join(str(part) for part in places) or None
    message = first["msg"].removeprefix("Value error, ")
    if param is not None:
        message = f"{param}: {message}"
    if first["type"] != "missing" and isinstance(first.get("input"), str | int | float | bool):
        message += f" (got {str(first['input'])[:80]!r})"
    if len(errors) > 1:
        message += f"; and {len(errors) - 1} more"
    code = "missing_field" if first["type"] == "missing" else "invalid_value"
    return error_response(400, message, "invalid_request_error", code, param)


def from_http(error: StarletteHTTPException) -> JSONResponse:
    cause = error.__cause__  # raised while FastAPI read the body
    if isinstance(cause, ServiceError):
        return from_service(cause)
    if isinstance(cause, UnicodeDecodeError | RecursionError):
        what = "not UTF-8" if isinstance(cause, UnicodeDecodeError) else "nested too deeply"
        return error_response(
            400, f"the body is {what}", BadRequest.type, "invalid_json", hint="send other JSON"
        )
    phrase = HTTPStatus(error.status_code).phrase
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(
        error.status_code, phrase.lower().replace(" ", "_")
    )
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return error_response(error.status_code, str(error.detail or phrase), kind, code)


def from_unexpected(error: Exception) -> JSONResponse:
    """The message stays in the log: it may carry paths or another caller's text."""
    record = current_record()
    request_id = record.request_id if record is not None else "unknown"
    logger.error("request %s failed", request_id, exc_info=error)
    return error_response(
        500,
        "the server failed on this request",
        "server_error",
        "server_error",
        hint=f"report request id {request_id}; the server's log has the reason",
    )


def install(app: FastAPI, engine_errors: dict[type[Exception], Any]) -> None:
    """Replace the app's exception handlers; `engine_errors` come from `service.engine`."""
    handlers: dict[Any, Any] = {
        ServiceError: from_service,
        AdapterError: from_adapter,
        RequestValidationError: from_validation,
        HTTPException: from_http,
        StarletteHTTPException: from_http,
        **engine_errors,
        Exception: from_unexpected,
    }
    app.exception_handlers.clear()
    for kind, handle in handlers.items():
        app.add_exception_handler(kind, _handler(handle))


def _handler(handle: Any) -> Any:
    async def respond(_request: Request, error: Exception) -> JSONResponse:
        response: JSONResponse = handle(error)
        return response

    return respond
