"""Versions that are taken out of use while a server runs."""

import asyncio
import threading
from pathlib import Path

import pytest

from adapters.errors import InvalidInput, Retired, VersionInUse
from adapters.registry import Registry, Version
from service.errors import ModelNotFound
from service.record import Record, set_record
from tests.adapters.parcels import draft
from tests.service.workbench import Bench, base_named, run


def test_a_retired_version_is_gone_for_the_next_request_and_the_one_at_work_goes_on(
    bench: Bench,
) -> None:
    bench.publish(1)

    async def work() -> None:
        await bench.ask("x@1")
        (resident,) = bench.residency.residents()
        await bench.models.retire("x@1")
        for name in ("x@1", bench.registry.find("x@1").fine_tuned_model):
            with pytest.raises(Retired):
                await bench.ask(name)
        assert resident.in_flight == 1
        assert bench.engine.unloaded == []

    run(work)


def test_a_retirement_elsewhere_is_followed_on_either_database(
    database: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    bench.publish(1)
    elsewhere = Registry.open(bench.registry.home.root)

    async def work() -> None:
        await bench.models.catch_up()
        await bench.ask("x@1")
        elsewhere.retire("x@1")
        await bench.models.catch_up()
        with pytest.raises(Retired):
            await bench.ask("x@1")
        folder = bench.work / "x-1"
        elsewhere.publish(folder, draft(folder))
        assert (await bench.ask("x@1")).reference == "x@1"

    run(work)


def test_what_was_looked_up_before_a_retirement_is_not_remembered_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(1)
    found, go_on = threading.Event(), threading.Event()
    find = Registry.find

    def slow(registry: Registry, reference: str) -> Version:
        version = find(registry, reference)
        found.set()
        go_on.wait(10)
        return version

    async def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "find", slow)
            asked = asyncio.create_task(bench.models.look_up("x@1"))
            await asyncio.to_thread(found.wait, 10)
            await bench.models.retire("x@1")
            go_on.set()
            await asked
        with pytest.raises(Retired):
            await bench.models.look_up("x@1")

    run(work)


def test_only_what_is_no_base_and_in_no_use_can_be_retired(bench: Bench) -> None:
    bench.publish(1)
    bench.publish(2, "other", project="theirs")
    bench.registry.promote("x@1")
    bench.registry.add_base(base_named("another", bench.work))

    async def work() -> None:
        set_record(Record("r", "/v1/models/x"))
        for reference, error in (
            ("b", InvalidInput), ("another", InvalidInput), ("x", InvalidInput),
            ("x@1", VersionInUse),
            ("other@1", ModelNotFound), ("nobody@1", ModelNotFound), ("No Name", ModelNotFound),
        ):  # fmt: skip
            with pytest.raises(error):
                await bench.models.retire(reference)

    run(work)
    assert bench.registry.find("other@1").state == "ready"
