"""What the threat model says is shown by tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
CLAIMS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("place", "name"), CLAIMS)
def test_a_claim_names_a_test_that_exists(place: str, name: str) -> None:
    assert re.search(rf"^\s*(async )?def {name}\(", (ROOT / place).read_text(), re.MULTILINE)


def test_every_defence_names_a_test() -> None:
    defended = PAGE[PAGE.index("## Boundaries") : PAGE.index("## What is not defended")]
    rows = [line for line in defended.splitlines() if line.startswith("| ")]
    bare = [row for row in rows if "::" not in row and not row.startswith("| threat")]
    assert len(rows) > 25
    assert bare == []
