"""Preflight: whether planted faults are found by their names, and clean data left in peace."""

import sys
from collections.abc import Sequence
from pathlib import Path

from adapters.prompt import Renderer
from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.sets import packaged, sets_there
from finetune.base_model import load_tokenizer
from finetune.config import Recipe, check_recipe
from finetune.findings import Finding
from tests.finetune.faults import CLEAN_SETS, FAULTS, clean_recipe, findings, recipe_of


def measure(report: Report, folder: Path, **_: bool) -> None:
    """Look for the faults in data of every task, with the base model's own tokenizer."""
    base = Registry.open().base()
    renderer = Renderer(load_tokenizer(base.path))

    def look(recipe: Recipe) -> list[Finding]:
        return findings(recipe, renderer, base.context_length)

    folder.mkdir(parents=True, exist_ok=True)
    missed = [
        fault.code
        for fault in FAULTS
        if fault.code not in {found.code for found in look(recipe_of(fault, folder))}
    ]
    raised = {name: _errors(look(clean_recipe(name, folder))) for name in CLEAN_SETS}
    raised |= {one.name: _errors(look(check_recipe(packaged(one)))) for one in sets_there()}
    for name, errors in raised.items():
        for error in errors:
            print(f"{name}: {error}", file=sys.stderr)
    for code in missed:
        print(f"missed: {code}", file=sys.stderr)
    report.add(at_least("planted faults found", len(FAULTS) - len(missed), len(FAULTS)))
    report.add(at_least("kinds of planted faults", len({fault.code for fault in FAULTS}), 30))
    report.add(at_least("clean sets", len(raised), 10))
    report.add(at_most("clean sets with an error", sum(map(bool, raised.values())), 0))


def _errors(found: Sequence[Finding]) -> list[str]:
    return [finding.message for finding in found if finding.level == "error"]
