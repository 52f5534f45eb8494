"""What tests of several packages share."""

from collections.abc import Iterator

import pytest

from tests.postgres import Postgres


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
