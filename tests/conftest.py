"""What tests of several packages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres

HERE = Path(__file__).parent
ALONE = ("engine", "e2e", "bench", "loadtests", "finetune/test_ray.py", "finetune/test_trial.py")
"""Tests that measure time or take all cores; the others share the cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(HERE / place) for place in ALONE):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; started by the first test that needs it."""
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both databases; registries that the test opens use the one at hand.

    Its kind; the address is in the environment.
    """
    if request.param == "postgresql":
        monkeypatch.setenv("MODISTE_DATABASE_URL", request.getfixturevalue("postgres").ready())
    return str(request.param)
