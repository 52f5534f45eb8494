"""What a caller says of a file: its purpose, its name and when it goes."""

import re
from typing import Any

from starlette.datastructures import FormData

from service.errors import BadRequest
from service.files import UPLOADED
from service.objects import LEAST_S, MOST_S
from service.scopes import check_purpose

EXPIRES = re.compile(r"expires_after\[(\w+)\]")
MAX_FILENAME = 255


def purpose_of(given: Any) -> str:
    """One that the caller may upload for."""
    if given is None:
        raise BadRequest(
            "purpose is missing", param="purpose", code="missing_field",
            hint=f"give one of {', '.join(UPLOADED)}",
        )  # fmt: skip
    if given not in UPLOADED:
        raise BadRequest(
            f"purpose: {str(given)[:60]!r} is not served", param="purpose",
            hint=f"give one of {', '.join(UPLOADED)}",
        )  # fmt: skip
    check_purpose(str(given), "purpose")
    return str(given)


def filename_of(given: str | None) -> str:
    """A name to show; it never becomes a path."""
    name = (given or "").replace("\\", "/").rsplit("/", 1)[-1].strip()
    if not name or len(name) > MAX_FILENAME or not name.isprintable():
        raise BadRequest(
            f"filename: {name[:80]!r} is no name of a file", param="filename",
            hint=f"give one line of 1 to {MAX_FILENAME} characters",
        )  # fmt: skip
    return name


def expiry_of(form: FormData) -> int | None:
    """Seconds of `expires_after[anchor]` and `expires_after[seconds]`."""
    given = {found[1]: form[name] for name in form if (found := EXPIRES.fullmatch(name))}
    if not given:
        return None
    seconds = str(given.get("seconds", ""))
    whole = seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
    if given.get("anchor") != "created_at" or not whole or set(given) != {"anchor", "seconds"}:
        raise BadRequest(
            "expires_after needs anchor, which is created_at, and seconds",
            param="expires_after", hint="send expires_after[anchor] and expires_after[seconds]",
        )  # fmt: skip
    if not LEAST_S <= int(seconds) <= MOST_S:
        raise BadRequest(
            f"expires_after.seconds: {seconds[:20]} is not between {LEAST_S} and {MOST_S}",
            param="expires_after.seconds", hint="choose one hour to 30 days",
        )  # fmt: skip
    return int(seconds)
