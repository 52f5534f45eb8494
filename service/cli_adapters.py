"""`modiste adapters …`: versions and aliases from the shell."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from adapters.aliases import AliasMove
from adapters.diff import Difference, differences
from adapters.errors import AdapterError
from adapters.garbage import KEEP, OLDER_THAN_DAYS
from adapters.names import PRODUCTION
from adapters.registry import Registry, Version
from adapters.transfer import export
from service.console import FAILED, PASS_ON, AsJson, Home, complain, out, run_child
from service.settings import Settings

Why = Annotated[
    str, typer.Option(help="The reason, kept in the history; needed past a failed gate.")
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Also where a running server can't take the version, or its gate failed."
    ),
]

adapters_app = typer.Typer(no_args_is_help=True, help="Adapters, their versions and aliases.")


@adapters_app.command("list")
def adapters_list(home: Home = None, as_json: AsJson = False) -> None:
    """List adapters with their aliases."""
    records = Registry.open(home).adapters()
    if as_json:
        rows = [
            {"name": r.name, "task": r.task, "versions": r.versions, "aliases": r.aliases}
            for r in records
        ]
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "task", "versions", "aliases")
    for record in records:
        aliases = ", ".join(f"{alias} -> {n}" for alias, n in sorted(record.aliases.items()))
        table.add_row(record.name, record.task, str(record.versions), aliases)
    out.print(table if records else "no adapters; make one with `modiste finetune run RECIPE`")


@adapters_app.command("show")
def adapters_show(reference: str, home: Home = None, as_json: AsJson = False) -> None:
    """Show an adapter's versions, or one version: NAME, NAME@7, NAME@alias, NAME@sha256:…"""
    registry = Registry.open(home)
    versions = [registry.find(reference)] if "@" in reference else registry.versions(reference)
    if as_json:
        rows = [
            {**v.manifest.model_dump(mode="json"), "state": v.state, "reason": v.reason}
            for v in versions
        ]
        print(json.dumps(rows, indent=1))
        return
    aliases = registry.aliases(versions[0].name) if versions else {}
    for version in versions:
        _print_version(version, [a for a, number in aliases.items() if number == version.number])


def _print_version(version: Version, aliases: list[str]) -> None:
    manifest = version.manifest
    table = Table(show_header=False, title=version.reference, title_justify="left")
    state = version.state if not version.reason else f"{version.state}: {version.reason}"
    table.add_row("digest", version.digest)
    table.add_row("state", Text(state))  # brackets in a reason are no markup
    table.add_row("aliases", ", ".join(aliases) or "none")
    if manifest.checkpoint is not None:
        table.add_row("checkpoint", f"after step {manifest.checkpoint} of its run")
    table.add_row("task", f"{manifest.task} {' -> '.join(manifest.languages)}".strip())
    if manifest.labels:
        table.add_row("labels", Text(", ".join(manifest.labels)))
    table.add_row("base", f"{manifest.base.name} {manifest.base.fingerprint[:19]}…")
    table.add_row("made", f"{manifest.created:%Y-%m-%d %H:%M} UTC, {manifest.size / 1e6:.1f} MB")
    for name, m in manifest.metrics.items():
        live = "" if m.live_value is None else f"; live {m.live_value:.3g}"
        table.add_row(
            Text(name),
            f"{m.value:.3g} ({m.low:.3g} to {m.high:.3g}); "
            f"base {m.base_value:.3g} ({m.base_low:.3g} to {m.base_high:.3g}){live}",
        )
    if manifest.gate is not None:
        table.add_row("gate", Text(manifest.gate.reason.removeprefix("gate ")))
    out.print(table)


@adapters_app.command("promote")
def adapters_promote(
    reference: str,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = PRODUCTION,
    why: Why = "",
    force: Force = False,
    home: Home = None,
) -> None:
    """Point an alias at a version; running servers load, prove and serve it."""
    version = Registry.open(home).promote(reference, alias, why=why, force=force)
    print_alias(alias, version)


@adapters_app.command("rollback")
def adapters_rollback(
    name: str,
    alias: Annotated[str, typer.Option(help="The alias to move back.")] = PRODUCTION,
    why: Why = "",
    home: Home = None,
) -> None:
    """Point an alias back at the version before; again, at the one before that."""
    version = Registry.open(home).rollback(name, alias, why=why)
    print_alias(alias, version)


@adapters_app.command("retire")
def adapters_retire(
    reference: str,
    why: Annotated[str, typer.Option(help="The reason, kept in the history.")] = "",
    home: Home = None,
) -> None:
    """Take a version out of use, unless an alias points at it: NAME@7, NAME@sha256:… or ft:…"""
    version = Registry.open(home).retire(reference, why=why)
    out.print(f"{version.reference} is retired; `modiste adapters gc` removes its files")


def print_alias(alias: str, version: Version) -> None:
    """Where an alias points now."""
    out.print(f"{version.name}@{alias} -> {version.reference} {version.digest}", soft_wrap=True)


@adapters_app.command("history")
def adapters_history(name: str, home: Home = None, as_json: AsJson = False) -> None:
    """Show every move of an adapter's aliases, and what was retired, oldest first."""
    moves = Registry.open(home).alias_history(name)
    if as_json:
        rows = [{**asdict(move), "moved": move.moved.isoformat()} for move in moves]
        print(json.dumps(rows, indent=1))
        return
    table = Table("when (UTC)", "alias", "from", "to", "who", "why")
    for move in moves:
        table.add_row(
            f"{move.moved:%Y-%m-%d %H:%M:%S}", move.alias,
            "" if move.from_number is None else str(move.from_number),
            "(retired)" if move.retired else f"{move.to_number}{_kind(move)}",
            Text(move.who), Text(move.why),
        )  # fmt: skip
    out.print(table)


def _kind(move: AliasMove) -> str:
    if move.percent is not None:
        return f" (canary, {move.percent:g} %)"
    return " (rollback)" if move.rollback else ""


@adapters_app.command("diff")
def adapters_diff(
    left: str,
    right: str,
    ask: Annotated[
        list[str] | None, typer.Option(help="A text that both shall answer; may be repeated.")
    ] = None,
    server: Annotated[
        str, typer.Option(help="The running server that answers --ask.")
    ] = f"http://127.0.0.1:{Settings.model_fields['port'].default}",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: configuration, data, metrics, and their answers to given texts."""
    from service.ask import answers_of

    registry = Registry.open(home)
    versions = registry.find(left), registry.find(right)
    found = differences(*versions)
    answers = [Difference(text, *answers_of(server, versions, text)) for text in ask or ()]
    if as_json:
        rows = {"fields": [asdict(d) for d in found], "answers": [asdict(d) for d in answers]}
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for title, differing in (("field", found), ("text", answers)):
        table = Table(title, versions[0].reference, versions[1].reference, show_lines=True)
        for d in differing:
            shown = ("" if side is None else str(side) for side in (d.left, d.right))
            table.add_row(Text(d.field), *(Text(side) for side in shown))
        if differing:
            out.print(table)
    if not found:
        out.print("the manifests are equal")


@adapters_app.command("gc")
def adapters_gc(
    keep: Annotated[int, typer.Option(help="Newest versions of each adapter that stay.")] = KEEP,
    older_than_days: Annotated[
        float, typer.Option(help="Younger versions stay.")
    ] = OLDER_THAN_DAYS,
    dry_run: Annotated[bool, typer.Option(help="Only tell what would go.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Remove the files of old versions that no alias and no running server refers to."""
    collected = Registry.open(home).collect(
        keep=keep, older_than_days=older_than_days, dry_run=dry_run
    )
    if as_json:
        print(json.dumps({**asdict(collected), "dry_run": dry_run}, indent=1))
        return
    verb = "would remove" if dry_run else "removed"
    for what in collected.versions + collected.leftovers:
        out.print(f"{verb} {what}", soft_wrap=True, highlight=False)
    out.print(f"{verb} {collected.size / 1e6:.1f} MB", highlight=False)


@adapters_app.command("verify")
def adapters_verify(
    reference: Annotated[
        str | None, typer.Argument(help="A version or alias; default: every version in use.")
    ] = None,
    home: Home = None,
) -> None:
    """Check every file of a version, or of all, against its digest."""
    registry = Registry.open(home)
    if reference is not None:
        _tell_whole(registry.verified(reference))
        return
    found, wrong = registry.readable()
    for version in found:
        try:
            _tell_whole(registry.verified(version.reference))
        except AdapterError as error:
            wrong.append(error)
    for one in wrong:
        complain(one.message, one.hint)
    if wrong:
        raise typer.Exit(FAILED)


def _tell_whole(version: Version) -> None:
    out.print(f"{version.reference} {version.digest} is whole", soft_wrap=True)


@adapters_app.command("export")
def adapters_export(reference: str, target: Path, home: Home = None) -> None:
    """Write a version to a folder, or to a tar: TARGET ends with .tar, .tar.gz or .tgz."""
    version = export(Registry.open(home), reference, target.expanduser())
    out.print(f"{version.reference} {version.digest} -> {target}", soft_wrap=True, highlight=False)


@adapters_app.command("import", context_settings=PASS_ON, add_help_option=False)
def adapters_import(context: typer.Context) -> None:
    """Publish an export, or what peft saved (see `modiste adapters import --help`)."""
    run_child("finetune.imports", context.args)


@adapters_app.command("merge", context_settings=PASS_ON, add_help_option=False)
def adapters_merge(context: typer.Context) -> None:
    """Make one version of several adapters (see `modiste adapters merge --help`)."""
    run_child("finetune.merge", context.args)


@adapters_app.command("bake", context_settings=PASS_ON, add_help_option=False)
def adapters_bake(context: typer.Context) -> None:
    """Write an adapter into its base's weights (see `modiste adapters bake --help`)."""
    run_child("finetune.bake", context.args)
