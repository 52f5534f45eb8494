"""How commands take and show limits."""

import json
from typing import Annotated

import typer

from adapters.errors import InvalidInput
from service.console import out
from service.limiting.limits import LIMITS, Limits
from service.settings import MOST

_VALUES = "a number, `none`, or `default`: as the settings say"
RequestsPerMinute = Annotated[
    str | None, typer.Option(help=f"Requests that begin in any minute: {_VALUES}.")
]
TokensPerMinute = Annotated[
    str | None, typer.Option(help=f"Tokens, read and written, in any minute: {_VALUES}.")
]
Concurrent = Annotated[
    str | None, typer.Option(help=f"Requests that are answered at once: {_VALUES}.")
]


def given_limits(*values: str | None) -> dict[str, int | None]:
    """Those of the options that were given, in the order of LIMITS; 0: no limit.

    Raises:
        InvalidInput: a value is none.
    """
    pairs = zip(LIMITS, values, strict=True)
    return {name: _number(name, value) for name, value in pairs if value is not None}


def some_limits(*values: str | None) -> dict[str, int | None]:
    """The same where at least one is needed.

    Raises:
        InvalidInput: none is given, or a value is none.
    """
    if changes := given_limits(*values):
        return changes
    options = ", ".join(f"--{name.replace('_', '-')}" for name in LIMITS)
    raise InvalidInput("no limit is given", hint=f"give one of {options}", param=LIMITS[0])


def shown(limits: Limits) -> str:
    """In a table's cell; empty: all as the settings say."""
    short = ("requests/min", "tokens/min", "at once")
    values = [getattr(limits, name) for name in LIMITS]
    pairs = zip(values, short, strict=True)
    return ", ".join(
        f"any {name}" if value == 0 else f"{value:,} {name}"
        for value, name in pairs
        if value is not None
    )


def told(limits: Limits) -> dict[str, int | str]:
    """In JSON."""
    values = {name: getattr(limits, name) for name in LIMITS}
    words = {None: "default", 0: "none"}
    return {name: words.get(value, value) for name, value in values.items()}


def say(whose: str, limits: Limits, *, as_json: bool) -> None:
    """What was set."""
    if as_json:
        print(json.dumps({"of": whose, "limits": told(limits)}))
    else:
        out.print(f"{whose}: {shown(limits) or 'limits as the settings say'}")


def _number(name: str, value: str) -> int | None:
    if value in ("none", "default"):
        return 0 if value == "none" else None
    if value.isascii() and value.isdecimal() and 0 < len(value) < 16 and 1 <= int(value) <= MOST:
        return int(value)
    raise InvalidInput(
        f"{name}: {value[:40]!r} is no limit",
        hint=f"give a number from 1 to {MOST}, none, or default", param=name,
    )  # fmt: skip
