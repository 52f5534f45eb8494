"""Versions that were taken out of use leave the engine, and their files may go."""

import asyncio
from pathlib import Path

import pytest

from service import departures
from service.departures import follow_retirements
from service.errors import NotReady
from service.record import Record, current_record, set_record
from tests.service.workbench import Bench, run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "EVERY_S", 0.01)


@pytest.fixture
def bench(tmp_path: Path, database: str) -> Bench:
    return Bench(tmp_path)


async def until(bench: Bench, *loaded: str) -> None:
    """Wait until these versions, and no others, are loaded and held."""

    def held() -> set[str]:
        return {version.reference for version in bench.residency.leasing.held()}

    async with asyncio.timeout(10):
        while held() != set(loaded) or len(bench.residency.residents()) != len(loaded):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_retired_version_is_unloaded_once_its_requests_have_ended(bench: Bench) -> None:
    bench.publish(1)
    bench.publish(2)

    async def work() -> None:
        following = asyncio.create_task(follow_retirements(bench.registry, bench.residency))
        await bench.ask("x@1")
        record = current_record()
        assert record is not None
        await asyncio.create_task(bench.ask("x@2"))
        bench.registry.retire("x@1")
        await asyncio.sleep(0.2)
        assert bench.residency.is_loaded(bench.registry.find("x@1"))  # its request goes on
        record.finish()
        await until(bench, "x@2")
        assert bench.engine.unloaded == [bench.digest("x@1")]
        assert not following.done()
        following.cancel()

    run(work)


def test_a_version_of_a_project_that_is_deleted_leaves_too(bench: Bench) -> None:
    bench.publish(1, "ours", project="ours")
    bench.publish(2, "theirs")
    bench.registry.promote("ours@1")
    bench.registry.promote("theirs@1")
    server = bench.residency.leasing.server

    async def work() -> None:
        following = asyncio.create_task(follow_retirements(bench.registry, bench.residency))
        await bench.models.catch_up()
        bench.registry.take_out("ours")
        assert bench.registry.held("ours") == {server: ["ours@1"]}
        await bench.models.catch_up()
        await until(bench, "theirs@1")
        bench.registry.renew(server, bench.residency.leasing.held())
        assert bench.registry.erase("ours") == 0
        await bench.models.catch_up()
        assert list(bench.models.live()) == [("theirs", "production")]
        following.cancel()

    run(work)


def test_equal_content_that_another_name_needs_stays(bench: Bench) -> None:
    bench.publish(1, "ours", project="ours")
    bench.publish(1, "theirs")
    bench.registry.promote("ours@1")
    bench.registry.promote("theirs@1")

    async def work() -> None:
        await bench.models.catch_up()
        bench.registry.take_out("ours")
        await bench.models.catch_up()
        (resident,) = bench.residency.residents()
        await bench.residency.let_go(resident.version)
        assert bench.residency.is_loaded(resident.version)
        set_record(Record("r", "/v1/generate"))
        assert (await bench.models.resolve("theirs", task="generate")).reference == "theirs@1"

    run(work)


def test_a_database_that_is_away_is_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(1)
    asked: list[int] = []
    out_of_use = bench.registry.out_of_use

    def once_away(versions: list[object]) -> list[object]:
        asked.append(len(versions))
        if len(asked) == 1:
            raise NotReady("away")
        return out_of_use(versions)  # type: ignore[arg-type, return-value]

    async def work() -> None:
        monkeypatch.setattr(bench.registry, "out_of_use", once_away)
        following = asyncio.create_task(follow_retirements(bench.registry, bench.residency))
        await bench.residency.ensure(bench.registry.find("x@1"))
        bench.registry.retire("x@1")
        await until(bench)
        following.cancel()
        assert len(asked) >= 2

    run(work)
