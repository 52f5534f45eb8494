"""A registry on each database, and a server without an engine, for those who ask for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.registry import Registry
from tests.made import add_tiny_base
from tests.service.desk import Desk, desk
from tests.service.workbench import Bench


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    return Registry.open(tmp_path)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk(tmp_path_factory.mktemp("home")) as served:
        add_tiny_base(served.registry)
        yield served
