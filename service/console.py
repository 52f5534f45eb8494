"""What all commands share: the terminal, common options, how errors look, and children."""

import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters.errors import InvalidInput

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose arguments are all for a child."""

out = Console()
err = Console(stderr=True)

Home = Annotated[
    Path | None, typer.Option(help="The home folder.", envvar="MODISTE_HOME", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_span(text: str, param: str) -> timedelta:
    """A span of time as an option gives it.

    Raises:
        InvalidInput: it is none.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidInput(
            f"{param} {text[:40]!r} is no span of time",
            hint="write a number and s, m, h or d: 90d", param=param,
        )  # fmt: skip
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def complain(message: str, hint: str = "") -> None:
    """An error with its remedy, on stderr."""
    err.print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    if hint:
        err.print(f"  {_escape(hint)}", highlight=False, soft_wrap=True)


def run_child(module: str, arguments: list[str]) -> None:
    """Run `python -m MODULE` in our place, and end as it ends.

    Ctrl-C reaches the child too, which may have to put away what it began: it is waited for. What
    ends a process from outside reaches the parent alone, and is passed on.
    """
    with subprocess.Popen([sys.executable, "-m", module, *arguments]) as child:
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                continue
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(code if code >= 0 else 128 - code)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
