"""Fleets on paper: writes the tables of docs/scaling.md, `python -m bench scaling [--check]`.

Nothing is measured, so nothing is claimed: it is arithmetic (bench/sizing.py, bench/state_load.py)
and a simulation with a fixed seed (bench/placement.py), the same on every machine.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench import bottlenecks, sizing, state_load
from bench.bottlenecks import CASES, RATES, SLOTS, Case, activity, first, placed, standing_still
from bench.harness import ROOT
from bench.sizing import ALL_MODULES, ATTENTION, MODELS, PLANNED, RANK, Model, Server, planned_slots
from bench.state_load import TASKS, statements_at_rest

PAGE = ROOT / "docs" / "scaling.md"
RANKS = (8, 16, 32, 64)
SERVERS = (1, 10, 100, 400)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits that count, thousands apart."""
    if value >= 100:
        digits = len(str(int(value)))
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else "< 0.001"


def size(value: float) -> str:
    return f"{number(value / 1e9)} GB" if value >= 1e9 else f"{number(value / 1e6)} MB"


def share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def inputs() -> str:
    every = (*sizing.INPUTS, *state_load.INPUTS, *bottlenecks.INPUTS)
    models = [
        [
            f"{m.name}: layers, width, heads, key and value heads, inner width, vocabulary",
            f"{m.layers}, {m.hidden:,}, {m.heads}, {m.key_value_heads}, {m.inner:,}, "
            f"{m.vocabulary:,}",
            m.source,
        ]
        for m in MODELS
    ]
    split = [[f"{m.name}: GPUs of a server (tensor parallel)", str(m.gpus), "assumed"]
             for m in MODELS]  # fmt: skip
    figures = [[one.what, one.shown, one.source] for one in every]
    return table(["what", "value", "from"], [*models, *split, *figures])


def adapters() -> str:
    rows = []
    for model in MODELS:
        for name, modules in (("attention", ATTENTION), ("all seven", ALL_MODULES)):
            for rank in RANKS:
                weights = model.adapter_bytes(rank, modules)
                rows.append(
                    [
                        model.name, name, str(rank), size(weights),
                        size(model.slot_bytes(rank, modules)), size(weights * model.gpus),
                    ]
                )  # fmt: skip
    header = ["base", "modules", "rank", "file", "a slot in a GPU", "a place in the host's memory"]
    return table(header, rows)


def servers() -> str:
    """One server of each base, a line for each figure."""
    found = [Server(model, int(SLOTS.value)) for model in MODELS]
    lines: list[tuple[str, Callable[[Server], str]]] = [
        ("parameters", lambda s: f"{s.model.parameters / 1e9:.2f} billion"),
        ("GPUs", lambda s: str(s.model.gpus)),
        ("weights, a GPU", lambda s: size(s.model.parameters * 2 / s.model.gpus)),
        ("slots that are planned: 10, 100 live versions",
         lambda s: ", ".join(str(planned_slots(s.model, live)) for live in (10, 100))),
        (f"{SLOTS.shown} slots, a GPU",
         lambda s: size(s.slots * s.model.slot_bytes(int(RANK.value)))),
        ("KV cache of a token, all GPUs", lambda s: f"{s.model.cache_bytes // 1024} KiB"),
        ("KV cache, tokens", lambda s: number(s.cache_tokens)),
        ("whole sequences in it", lambda s: number(s.sequences)),
        ("sequences when the next token takes its longest", lambda s: number(s.most_running)),
        ("highest rate, requests/s", lambda s: number(s.planned_rate / PLANNED.value)),
        ("planned rate, requests/s", lambda s: number(s.planned_rate)),
        ("sequences that run then", lambda s: number(s.running(s.planned_rate))),
        ("places: versions in the host's memory", lambda s: number(s.places)),
        ("a load", lambda s: f"{number(s.load_s * 1000)} ms"),
        ("a slot that changes", lambda s: f"{number(s.copy_s * 1000)} ms"),
    ]  # fmt: skip
    rows = [[what, *(tell(server) for server in found)] for what, tell in lines]
    return table(["one server", *(server.model.name for server in found)], rows)


def replicas() -> str:
    def needed(model: Model, rate: int) -> str:
        count = Case(model, 10, rate).servers
        return f"{count:,} ({count * model.gpus:,})"

    rows = [[f"{rate:,}", *(needed(model, rate) for model in MODELS)] for rate in (10, *RATES)]
    header = ["requests/s", *(f"{model.name}: servers (GPUs)" for model in MODELS)]
    return table(header, rows)


def placement() -> str:
    rows = []
    for case in CASES:
        told = [case.model.name, f"{case.adapters:,}", f"{case.rate:,}", f"{case.servers:,}"]
        for by_adapter in (False, True):
            figures = placed(case, by_adapter=by_adapter)
            told += [
                number(figures.adapters), share(figures.missed),
                share(standing_still(case, figures)),
            ]  # fmt: skip
        told.append(share(placed(case, by_adapter=True).spilled))
        rows.append(told)
    both = ["adapters at once", "misses", "standing still"]
    header = ["base", "adapters", "requests/s", "servers"]
    header += [f"{way}: {what}" for way in ("round robin", "affinity") for what in both]
    return table([*header, "affinity: spilled"], rows)


def tasks() -> str:
    rows = [
        [
            task.what, f"{task.every_s:g} s", str(task.statements), "yes" if task.writes else "",
            task.rows,
        ]
        for task in TASKS.values()
    ]  # fmt: skip
    total = f"{number(statements_at_rest())} statements/s"
    rows.append(["**one server at rest**", "", total, "", ""])
    header = ["what a server does", "every", "statements", "holds the write lock", "rows"]
    return table(header, rows)


def state() -> str:
    rows = []
    for case in CASES:
        if case.rate == RATES[0] and case.adapters != max(c.adapters for c in CASES):
            continue
        for way, by_adapter in (("round robin", False), ("affinity", True)):
            asked = activity(case, placed(case, by_adapter=by_adapter))
            rows.append(
                [
                    case.model.name, f"{case.adapters:,}", f"{case.rate:,}", way,
                    number(asked.statements), number(asked.rows), share(asked.writing),
                    number(asked.connections), number(asked.loads), number(asked.gets),
                    size(asked.fetched * asked.servers),
                ]
            )  # fmt: skip
    header = [
        "base", "adapters", "requests/s", "routing", "statements/s", "rows read/s", "lock held",
        "connections", "loads/s", "GETs/s", "from the store, a second",
    ]  # fmt: skip
    return table(header, rows)


def verdicts() -> str:
    rows = []
    for case in CASES:
        aliased = "yes" if case.adapters < case.server.places else "no"
        told = [case.model.name, f"{case.adapters:,}", f"{case.rate:,}", aliased]
        for by_adapter in (False, True):
            strain = first(case, placed(case, by_adapter=by_adapter))
            told.append(f"{strain.what}, {number(strain.ratio)}")
        told.append(strain.lifted_by if strain.ratio >= 1 else "more GPUs")
        rows.append(told)
    header = [
        "base", "adapters", "requests/s", "an alias for each?", "round robin: first, and how full",
        "affinity: first, and how full", "with affinity lifted by",
    ]  # fmt: skip
    return table(header, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "inputs": inputs, "adapters": adapters, "servers": servers, "replicas": replicas,
    "placement": placement, "tasks": tasks, "state": state, "verdicts": verdicts,
}  # fmt: skip


def render(page: str) -> str:
    """The page with its tables as they are now.

    Raises:
        ValueError: a table has no place in it, or a place no table.
    """
    places = re.findall(r"<!-- table: (\w+) -->", page)
    if sorted(places) != sorted(BLOCKS):
        raise ValueError(f"the page has places for {places}, there are tables for {list(BLOCKS)}")
    for name, make in BLOCKS.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{make()}\n{end}{after}"
    return page


def main(argv: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Rewrite the page's tables, or look whether they are current. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench scaling", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    check = parser.parse_args(argv).check
    before = page.read_text(encoding="utf-8")
    after = render(before)
    if check:
        stale = before != after
        if stale:
            print(f"{page} is not current: run `python -m bench scaling`", file=sys.stderr)
        return int(stale)
    page.write_text(after, encoding="utf-8")
    print(f"written to {page}")
    return 0
