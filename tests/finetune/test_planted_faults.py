"""Preflight finds each of many planted faults under its own name, and no error in clean data."""

from pathlib import Path

import pytest

from adapters.prompt import Renderer
from finetune.findings import CODES
from tests.finetune.faults import (
    CLEAN,
    CLEAN_SETS,
    FAULTS,
    Fault,
    clean_recipe,
    findings,
    recipe_of,
)


def test_there_are_at_least_thirty_faults_and_most_codes_are_planted() -> None:
    planted = {fault.code for fault in FAULTS}
    assert len(planted) >= 30
    elsewhere = {"no_training_examples", "no_held_out_examples", "validation_leakage",
                 "not_enough_memory", "few_held_out_examples"}  # fmt: skip
    assert set(CODES) - planted == elsewhere


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.code}-{f.spoil.__name__}")
def test_a_planted_fault_is_found_by_its_name(
    fault: Fault, tmp_path: Path, renderer: Renderer
) -> None:
    found = {f.code: f for f in findings(recipe_of(fault, tmp_path), renderer)}
    assert fault.code in found
    assert found[fault.code].level == CODES[fault.code][0]
    assert found[fault.code].count >= 1


@pytest.mark.parametrize("kind", CLEAN)
def test_what_is_planted_is_not_found_in_the_clean_data(
    kind: str, tmp_path: Path, renderer: Renderer
) -> None:
    recipe = recipe_of(Fault("", kind), tmp_path, spoilt=False)
    found = {f.code for f in findings(recipe, renderer)}
    planted = {fault.code for fault in FAULTS if fault.kind == kind}
    assert found & planted <= {"wrong_language"}  # words backwards are of no language


@pytest.mark.parametrize("name", CLEAN_SETS)
def test_clean_data_raises_no_error(name: str, tmp_path: Path, renderer: Renderer) -> None:
    found = findings(clean_recipe(name, tmp_path), renderer)
    assert [f.message for f in found if f.level == "error"] == []
    private = {"email", "phone", "iban", "credit_card", "ip_address", "api_key"}
    assert {f.code for f in found} & {*private, "mojibake", "special_tokens"} == set()
