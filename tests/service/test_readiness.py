"""What probes are told, and what a database that is away changes."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.errors import StoreFailed
from adapters.registry import Registry
from service import readiness as module
from service.ending import Ending
from service.errors import NotReady
from service.readiness import DatabaseReach, Readiness


class Parts:
    """Everything that a server's readiness looks at, in order."""

    def __init__(self) -> None:
        self.watchdog = SimpleNamespace(stuck=False)
        self.engine = SimpleNamespace(dead=False)
        self.aliases = SimpleNamespace(ready=True)
        self.warming = SimpleNamespace(ready=True)
        self.database = SimpleNamespace(away_s=0.0)

    def told(self, *, begun: str | None = None) -> tuple[str, str]:
        """What liveness and readiness say: `ok` or a code."""

        async def ask() -> tuple[str, str]:
            ending = Ending()
            if begun is not None:
                ending.begin(begun)
            state: Any = Readiness(
                self.watchdog, self.engine,  # type: ignore[arg-type]
                {"the aliases": self.aliases, "the engine": self.warming}, ending,
                self.database, 600.0,  # type: ignore[arg-type]
            )  # fmt: skip
            return _says(state.check_live), _says(state.check)

        return asyncio.run(ask())


def _says(check: Any) -> str:
    try:
        check()
    except NotReady as error:
        return error.code
    return "ok"


def test_a_server_whose_parts_all_work_is_ready() -> None:
    assert Parts().told() == ("ok", "ok")


@pytest.mark.parametrize(
    ("part", "attribute", "value", "told"),
    [
        ("engine", "dead", True, ("engine_dead", "engine_dead")),
        ("watchdog", "stuck", True, ("engine_stuck", "engine_stuck")),
        ("aliases", "ready", False, ("ok", "not_ready")),
        ("warming", "ready", False, ("ok", "not_ready")),
        ("database", "away_s", 599.0, ("ok", "ok")),
        ("database", "away_s", 601.0, ("ok", "database_away")),
    ],
)
def test_a_part_that_fails_takes_readiness_and_only_the_engine_liveness(
    part: str, attribute: str, value: Any, told: tuple[str, str]
) -> None:
    parts = Parts()
    setattr(getattr(parts, part), attribute, value)
    assert parts.told() == told


def test_a_server_that_ends_is_not_ready_but_alive_while_its_engine_stops() -> None:
    parts = Parts()
    assert parts.told(begun="") == ("ok", "shutting_down")
    parts.engine.dead = True
    assert parts.told(begun="") == ("ok", "shutting_down")
    assert parts.told(begun="the engine was killed") == ("engine_dead", "shutting_down")


def test_a_database_that_stops_answering_is_away_until_it_answers(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.01)
    monkeypatch.setattr(module, "AWAY_S", 0.05)
    real, away = registry.revision, False

    def revision() -> int:
        if away:
            raise StoreFailed("the database can't be used")
        return real()

    monkeypatch.setattr(registry, "revision", revision)

    async def follow() -> list[bool]:
        nonlocal away
        reach = DatabaseReach(registry)
        following, seen = asyncio.create_task(reach.follow()), []
        for now_away in (False, True, False):
            away = now_away
            await asyncio.sleep(0.3)
            seen.append(reach.away_s > 0)
        following.cancel()
        return seen

    assert asyncio.run(follow()) == [False, True, False]


def test_a_database_that_hangs_is_away_too(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY_S", 0.05)
    hanging = asyncio.Event()

    async def to_thread(*_: Any) -> None:
        hanging.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)

    async def follow() -> float:
        reach = DatabaseReach(registry)
        following = asyncio.create_task(reach.follow())
        await hanging.wait()
        await asyncio.sleep(0.1)
        following.cancel()
        return reach.away_s

    assert asyncio.run(follow()) > 0.05
