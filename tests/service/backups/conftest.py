"""A full home, backups of it, and processes that die at them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.bases import Base
from adapters.database import Table
from adapters.registry import Registry
from tests.adapters.parcels import BASE
from tests.service.filled import fill

PARTS = ("config.json", "model.safetensors")
DIED = 9


@pytest.fixture
def full(tmp_path: Path, database: str) -> Registry:
    """On each database; two projects that have everything, and a base model."""
    return filled(tmp_path)


def filled(tmp_path: Path) -> Registry:
    registry = Registry.open(tmp_path / "home")
    registry.home.settings.write_text("queue_wait_s: 7\n")
    folder = registry.home.bases / "b"
    folder.mkdir(parents=True)
    for name in PARTS:
        (folder / name).write_text(f"the {name}")
    registry.add_base(
        Base(
            name="b", path=folder, source="tests", ref=BASE, context_length=512,
            architecture="LlamaForCausalLM", parameters=1, lora=True,
        )
    )  # fmt: skip
    for project in ("theirs", "ours"):
        fill(registry, tmp_path, project)
    return registry


def rows(registry: Registry) -> dict[str, list[str]]:
    """All that the database says, but for where base models lie."""
    found = {}
    with registry.database.read() as session:
        for table in Table.metadata.sorted_tables:
            all_ = session.execute(sa.select(table)).mappings().all()
            told = [{k: v for k, v in row.items() if k != "record"} for row in all_]
            found[table.name] = sorted(map(repr, told))
    return found


def reopened(registry: Registry) -> Registry:
    """For a child process: SQLite's connections are not for two."""
    return Registry.open(registry.home.root)


def dies(step: int, act: Callable[[Callable[[str], None]], object]) -> bool:
    """Run in a process that is gone at its nth step; whether it came so far.

    Args:
        act: takes what is called at each step.
    """
    child = os.fork()
    if child == 0:
        left = [step]

        def tell(_step: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                os._exit(DIED)

        try:
            act(tell)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DIED
