"""`modiste adapters canary`, `end-canary` and `score`: trying a version out, from the shell."""

from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from adapters.errors import InvalidInput
from adapters.names import PRODUCTION, parse_reference
from adapters.registry import Registry
from adapters.rules import Rule
from service.cli_adapters import Force, Why, adapters_app, print_alias
from service.console import Home, out


@adapters_app.command("canary")
def adapters_canary(  # noqa: PLR0913, PLR0917  # one for each option
    reference: str,
    percent: Annotated[float, typer.Option(help="Its share of the alias's requests.")],
    alias: Annotated[str, typer.Option(help="The alias that shares its requests.")] = PRODUCTION,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="It ends by itself: `default`, or KEY=VALUE; may be repeated."),
    ] = None,
    why: Why = "",
    force: Force = False,
    home: Home = None,
) -> None:
    """Give a version a share of an alias's requests, to try it out."""
    chosen = parse_rule(rule) if rule else None
    version = Registry.open(home).start_canary(
        reference, percent, alias, rule=chosen, why=why, force=force
    )
    ends = "by rule" if chosen is not None else "by `modiste adapters end-canary`"
    out.print(
        f"{version.name}@{alias} gives {percent:g} % to {version.reference}; it ends {ends}",
        soft_wrap=True,
    )


def parse_rule(pairs: list[str]) -> Rule:
    """A rule of KEY=VALUE pairs; `none` switches a comparison off, `default` changes nothing.

    Raises:
        InvalidInput: names the pair.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        if pair == "default":
            continue
        key, equals, value = pair.partition("=")
        if not equals or key not in Rule.model_fields:
            raise InvalidInput(
                f"--rule {pair}: no such part of a rule",
                hint=f"give KEY=VALUE with one of {', '.join(Rule.model_fields)}",
                param="rule",
            )
        values[key] = None if value.lower() == "none" else yaml.safe_load(value)
    try:
        return Rule.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise InvalidInput(
            f"--rule {key}={values[key]}: {first['msg']}",
            hint=str(Rule.model_fields[key].description), param="rule",
        ) from error  # fmt: skip


@adapters_app.command("end-canary")
def adapters_end_canary(
    name: str,
    promote: Annotated[
        bool, typer.Option("--promote/--drop", help="Promote its version, or give its share back.")
    ],
    alias: Annotated[str, typer.Option(help="The alias.")] = PRODUCTION,
    why: Why = "",
    force: Force = False,
    home: Home = None,
) -> None:
    """End an alias's canary."""
    version = Registry.open(home).end_canary(name, alias, promote=promote, why=why, force=force)
    print_alias(alias, version)


@adapters_app.command("score")
def adapters_score(
    reference: str,
    score: Annotated[float, typer.Argument(help="0 useless, 1 as good as can be.")],
    request_id: Annotated[str, typer.Option(help="The answer's x-request-id.")],
    home: Home = None,
) -> None:
    """Keep what somebody thought of one answer; canaries are judged by the scores."""
    registry = Registry.open(home)
    number = registry.find(reference).number
    name = parse_reference(reference).name
    registry.score(name, number, score, request_id=request_id)
    out.print(f"{name}@{number} scored {score:g}", soft_wrap=True)
