"""A server without an engine, for those who ask for it."""

from collections.abc import Iterator

import pytest

from tests.made import add_tiny_base
from tests.service.desk import Desk, desk


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk(tmp_path_factory.mktemp("home")) as served:
        add_tiny_base(served.registry)
        yield served
