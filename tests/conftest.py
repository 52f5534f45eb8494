"""What tests of several packages share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import Postgres

# a slow example says nothing of the code where the tests share two cores
settings.register_profile(
    "modiste", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("modiste")

HERE = Path(__file__).parent
ALONE = (
    "engine", "e2e", "bench/test_overhead.py", "bench/test_rest.py", "loadtests",
    "finetune/test_ray.py", "finetune/test_trial.py", "cluster",
)  # fmt: skip
"""Tests that measure time or take all cores; nothing runs beside them."""
FIRST = (
    "service/jobs/test_made_models.py", "service/jobs/test_worker.py",
    "service/jobs/test_worker_ends.py", "service/batches", "service/test_document.py",
    "finetune/test_run.py", "finetune/test_killed.py", "finetune/test_sweep.py",
)  # fmt: skip
"""Tests that wait for processes of their own: begun first, they don't hold up the end."""
SLOW = (
    "service/jobs/test_ray_jobs.py", "engine/test_replicas.py", "finetune/test_ray.py", "cluster",
)  # fmt: skip
"""Several servers or a cluster each; `make test-slow` runs them."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for a process or for time to pass."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Neither half of `make test` imports what the other runs: that takes many seconds."""
    if not collection_path.match("test_*.py"):
        return None
    alone, wanted = _is_in(collection_path, ALONE), config.option.markexpr.split(" and ")
    return True if ("not alone" if alone else "alone") in wanted else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _is_in(item.path, FIRST))
    for item in items:
        if _is_in(item.path, ALONE):
            item.add_marker("alone")
        if _is_in(item.path, SLOW):
            item.add_marker("slow")


def _is_in(path: Path, places: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(HERE / place) for place in places)


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
