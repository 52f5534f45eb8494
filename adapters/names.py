"""Names and references: `name`, `name@alias`, `name@7`, `name@sha256:…`, `ft:BASE:PROJECT:name:ID`.

The last is the form in which OpenAI's API names what a fine-tuning job made; its ID is the
beginning of the version's digest, and base and project must be the version's. A version from
within a run has `:ckpt-step-N` after it, and is not there without.
Names become folder names and parts of URLs, so only a small alphabet passes.
"""

import re
from dataclasses import dataclass

from adapters.errors import InvalidName

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{8,64}")
_ID = re.compile(r"[0-9a-f]{8,64}")
_CHECKPOINT = re.compile(r"ckpt-step-([1-9][0-9]{0,8})")

PRODUCTION = "production"


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; exactly one of alias, number and digest is set."""

    name: str
    alias: str | None = None
    number: int | None = None
    digest: str | None = None
    base: str | None = None
    """Name of the base model, where the reference tells it; and the project."""
    project: str | None = None
    checkpoint: int | None = None
    """The step from which it is; told, and None for a run's result, where the base is told."""


def check_name(name: str, param: str = "name") -> str:
    """Return a valid adapter or alias name unchanged.

    Raises:
        InvalidName: the name has other characters, is empty or over 64 long.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidName(
            f"{param} {name[:80]!r} is not a valid name",
            hint="use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter "
            "or digit, without '..'",
            param=param,
        )
    return name


def check_alias(alias: str, param: str = "alias") -> str:
    """Like `check_name`; an alias that is all digits would read as a version number."""
    if alias.isdecimal():
        raise InvalidName(
            f"{param} {alias[:80]!r} is a number", hint="numbers name versions", param=param
        )
    return check_name(alias, param)


def parse_reference(text: str, param: str = "model") -> Reference:
    """Parse a reference to a version; a bare name means its alias `production`.

    Raises:
        InvalidName: the name, alias, number or digest is malformed.
    """
    if text.startswith("ft:"):
        return _parse_fine_tuned(text, param)
    name, at, rest = text.partition("@")
    check_name(name, param)
    if not at:
        return Reference(name, alias=PRODUCTION)
    if rest.isascii() and rest.isdecimal() and len(rest) <= 9:
        return Reference(name, number=int(rest))
    if rest.startswith("sha256:"):
        if not _DIGEST.fullmatch(rest):
            raise InvalidName(
                f"{param} {text[:120]!r} has a malformed digest",
                hint="write sha256: and 8 to 64 lower-case hex digits",
                param=param,
            )
        return Reference(name, digest=rest)
    return Reference(name, alias=check_alias(rest, param))


def fine_tuned_model(
    base: str, project: str, name: str, digest: str, checkpoint: int | None = None
) -> str:
    """A version's name in the form that OpenAI's API gives to fine-tuned models.

    Args:
        checkpoint: the step from which it is, where it is not a run's result.
    """
    whole = f"ft:{base}:{project}:{name}:{digest.removeprefix('sha256:')[:8]}"
    return whole if checkpoint is None else f"{whole}:ckpt-step-{checkpoint}"


def _parse_fine_tuned(text: str, param: str) -> Reference:
    parts = text.split(":")
    step = _CHECKPOINT.fullmatch(parts[5]) if len(parts) == 6 else None
    if len(parts) != (5 if step is None else 6) or not _ID.fullmatch(parts[4]):
        raise InvalidName(
            f"{param} {text[:120]!r} is not a fine-tuned model's name",
            hint="write ft:BASE:PROJECT:NAME:ID, the ID 8 to 64 lower-case hex digits; after it "
            ":ckpt-step-N for a checkpoint",
            param=param,
        )
    base, project, name = (check_name(part, param) for part in parts[1:4])
    checkpoint = None if step is None else int(step[1])
    return Reference(
        name, digest=f"sha256:{parts[4]}", base=base, project=project, checkpoint=checkpoint
    )
