"""What each scenario makes, by kind and name: a change of the chart that adds or drops shows here.

`UPDATE_GOLDEN=1 python -m pytest tests/helm/test_golden.py` writes the file again.
"""

import os
from pathlib import Path

import yaml

from tests.helm.rendering import SCENARIOS, render, scenario

GOLDEN = Path(__file__).parent / "golden" / "objects.yaml"


def test_scenarios_make_what_they_made() -> None:
    made = {
        name: sorted(f"{o['kind']} {o['metadata']['name']}" for o in render(scenario(name)))
        for name in SCENARIOS
    }
    text = yaml.safe_dump(made, sort_keys=True)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)

    assert text == GOLDEN.read_text()
