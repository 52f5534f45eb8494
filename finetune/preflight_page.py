"""A preflight report for people: on the terminal, and as one HTML page that needs nothing else.

Every text goes through `html.escape`; the page runs no script and fetches nothing, and says so
to the browser.
"""

from collections.abc import Iterable, Sequence
from html import escape

from rich.console import Console, Group
from rich.markup import escape as escape_markup
from rich.table import Table

from finetune.findings import CODES, Finding
from finetune.html_page import page
from finetune.preflight import Report, duration

_SHOWN_LABELS = 8
_BUSY = 1.0
"""Preparing data takes one core at most."""
_WIDTH, _BAR = 640, 18
"""Pixels."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; unicode-bidi: isolate }
.error, .warning { border-left: .4rem solid #c33; padding: .4rem 1rem; background: #fdeeee;
  margin: .5rem 0; overflow-wrap: anywhere }
.warning { border-color: #d90; background: #fff8e6 } rect { fill: #47a } text { font-size: 12px }
"""


def rows_of(report: Report) -> list[tuple[str, str]]:
    """The report's figures, name and value."""
    examples = ", ".join(f"{n:,} {split}" for split, n in report.examples.items() if n)
    sides = report.sides
    rows = [
        ("examples", examples or "none"),
        ("tokens", f"{report.tokens:,}, of them {report.supervised_tokens:,} supervised"),
        ("longest example", f"{report.longest:,} tokens; {report.truncated} cut, with "
                            f"{report.lost_tokens:,} tokens of answers"),
        ("duplicates", f"{sides.duplicates} exact, {sides.near_duplicates} near"),
        ("held-out inputs in train", f"{sides.leaked} exact, {sides.near_leaked} near"),
    ]  # fmt: skip
    if report.labels:
        top = sorted(report.labels.items(), key=lambda item: -item[1])[:_SHOWN_LABELS]
        more = f", … ({len(report.labels)} in all)" if len(report.labels) > len(top) else ""
        rows.append(("labels", ", ".join(f"{name} {count}" for name, count in top) + more))
    for side, counts in report.languages.items():
        if counts:
            told = ", ".join(f"{code} {count}" for code, count in list(counts.items())[:8])
            rows.append((f"languages of {side}s", f"{told} (of a sample)"))
    if report.sensitive:
        told = ", ".join(f"{count} {kind}" for kind, count in report.sensitive.items())
        rows.append(("personal data", told))
    return [*rows, *_machine(report)]


def _machine(report: Report) -> list[tuple[str, str]]:
    plan = report.plan
    steps = f"{plan['steps']} steps, {plan['tokens']:,} tokens"
    machine = f"{plan['device']}, {plan['dtype']}, {plan['threads']} threads"
    if plan["micro_batch_tokens"] is not None:
        machine += f", {plan['micro_batch_tokens']} tokens at once"
    if plan["activation_checkpointing"]:
        machine += ", activations computed twice"
    rows = [("machine", machine)]
    if report.estimate is None:
        return [*rows, ("training", steps)]
    measured = report.estimate
    took = f"about {duration(measured['seconds'])} at {measured['tokens_per_second']:.0f} tokens/s"
    how = f"median of {measured['steps_measured']} real steps, measured now"
    if measured["load"] > _BUSY:
        how += f", while others used the cores: load {measured['load']:.1f} on each; "
        how += f"{duration(measured['seconds_alone'])} at least, if they stop"
    peak, there = measured["peak_bytes"] / 2**30, measured["memory_bytes"] / 2**30
    return [
        *rows,
        ("training", f"{steps}, {took} ({how})"),
        ("memory", f"{peak:.2f} GiB at the peak, measured; {there:.1f} GiB there"),
    ]


def show(report: Report, console: Console) -> None:
    """Print the report as a table with its warnings and errors."""
    table = Table(show_header=False, box=None)
    for name, value in rows_of(report):
        table.add_row(name, escape_markup(value))
    notes = [
        f"[{'red' if found.level == 'error' else 'yellow'}]{found.level}[/] "
        f"{found.code}: {escape_markup(found.message)}"
        for found in reversed(report.findings)  # errors last, where they are seen
    ]
    console.print(Group(table, *notes))


def render(report: Report) -> str:
    """The page as HTML."""
    figures = "".join(f"<tr><th>{escape(n)}<td>{escape(v)}" for n, v in rows_of(report))
    labels = sorted(report.labels.items(), key=lambda item: -item[1])[:40]
    parts = [
        f"<p>{escape(report.task)}; {len(report.errors)} errors, {len(report.warnings)} warnings",
        *_findings(report.findings),
        f"<h2>Figures</h2><table>{figures}</table>",
        _bars("Tokens of an example, at most", [(f"{n}", c) for n, c in report.lengths]),
        _bars("Training examples by label", labels),
    ]
    return _page(report.name, parts)


def render_broken(name: str, findings: list[Finding]) -> str:
    """The page of data that could not be read."""
    return _page(name, ["<p>The data can't be read.", *_findings(findings)])


def _page(name: str, parts: Iterable[str]) -> str:
    title = f"{name}: preflight"
    return page(title, [f"<h1>{escape(title)}</h1>", *parts], _STYLE)


def _findings(findings: Sequence[Finding]) -> list[str]:
    shown = []
    for found in findings:
        places = "".join(f"<li>{escape(sample)}" for sample in found.samples)
        about = f"<br><small>{escape(CODES[found.code][1])}</small>"
        shown.append(
            f'<div class="{found.level}"><b>{found.level} {escape(found.code)}</b>: '
            f"{escape(found.message)}{about}{f'<ul>{places}</ul>' if places else ''}</div>"
        )
    return shown


def _bars(title: str, counts: Sequence[tuple[str, int]]) -> str:
    """Counts as bars, one below the other."""
    most = max((count for _, count in counts), default=0)
    if not most:
        return ""
    lines = []
    for number, (name, count) in enumerate(counts):
        top, width = number * (_BAR + 4), round(count / most * (_WIDTH - 260))
        lines.append(
            f'<text x="150" y="{top + 13}" text-anchor="end">{escape(name[:24])}</text>'
            f'<rect x="156" y="{top}" width="{width}" height="{_BAR}"/>'
            f'<text x="{160 + width}" y="{top + 13}">{count}</text>'
        )
    height = len(counts) * (_BAR + 4)
    return (
        f'<h2>{escape(title)}</h2><svg role="img" width="{_WIDTH}" height="{height}">'
        f"{''.join(lines)}</svg>"
    )
