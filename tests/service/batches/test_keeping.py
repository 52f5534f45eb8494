"""Results wait in memory until they are stored and counted, each once."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import StoreFailed
from adapters.registry import Registry
from adapters.remote import Remote
from service.batches import keeping
from service.batches.bench import lease_threads
from service.batches.keeping import Keeping, pause_s
from service.batches.lease import Lease
from service.batches.parts import Parts
from service.batches.queue import Batches, LeaseLost, NewBatch
from service.batches.results import OUTPUT, Result


class Kept:
    """A batch that server `s` has, and what it keeps of it."""

    def __init__(self, folder: Path) -> None:
        for name in ("store", "scratch"):
            (folder / name).mkdir()
        self.batches = Batches(Registry.open(folder / "home").database, lease_s=60)
        self.parts = Parts(Remote(f"file://{folder / 'store'}", waits_s=()), folder / "scratch")
        new = NewBatch("ours", "key", "/v1/generate", "file-a", "24h", None, None)
        self.id = self.batches.create(new).id
        row = self.batches.lease("s")
        assert row is not None
        self.lease = Lease(self.batches, row, "s", 0.0, lambda _: True, lease_threads())
        self.keeping = Keeping(self.parts, self.batches, self.lease, "s")

    def numbers(self) -> list[int]:
        keys = self.batches.parts(self.id)
        found = [number for key in keys for number in self.parts.numbers([key])]
        assert self.batches.find(self.id, "ours").completed == len(found)
        return sorted(found)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def result(number: int) -> Result:
    return Result.of(number, OUTPUT, {"n": number})


def test_what_waits_is_kept_once(kept: Kept) -> None:
    async def go() -> None:
        for number in (1, 2, 3):
            kept.keeping.add(result(number))
        await kept.keeping.keep()
        assert not kept.keeping.waits
        await kept.keeping.keep()
        kept.keeping.add(result(4))
        await kept.keeping.keep()

    asyncio.run(go())
    assert kept.numbers() == [1, 2, 3, 4]
    assert len(kept.batches.parts(kept.id)) == 2


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after it"])
def test_a_count_that_failed_is_repeated_with_the_same_part(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    keep, failures = kept.batches.keep, [StoreFailed("away")] * 3

    def fails(*given: Any, **more: Any) -> Any:
        row = keep(*given, **more) if after or not failures else None
        if failures:
            raise failures.pop()
        return row

    monkeypatch.setattr(kept.batches, "keep", fails)

    async def go() -> None:
        kept.keeping.add(result(1))
        for number in (2, 3, 4):
            with pytest.raises(StoreFailed):
                await kept.keeping.keep()
            kept.keeping.add(result(number))
        await kept.keeping.keep()

    asyncio.run(go())
    assert kept.numbers() == [1, 2, 3, 4]
    assert len(list(kept.parts._contents.files("batches"))) == 2  # nothing is stored in vain


def test_a_part_on_its_way_is_not_lost_when_its_work_is_cancelled(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun, goes_on = kept.parts.write, threading.Event(), threading.Event()

    def slowly(*given: Any) -> str:
        begun.set()
        goes_on.wait(10)
        return write(*given)

    monkeypatch.setattr(kept.parts, "write", slowly)

    async def go() -> None:
        kept.keeping.add(result(1))
        keeping = asyncio.create_task(kept.keeping.keep())
        await asyncio.to_thread(begun.wait, 10)
        keeping.cancel()
        await asyncio.wait({keeping})
        kept.keeping.add(result(2))
        goes_on.set()
        await kept.keeping.keep()  # as at the end of a server

    asyncio.run(go())
    assert kept.numbers() == [1, 2]


def test_what_is_just_being_kept_is_waited_for(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    write = kept.parts.write

    def slowly(*given: Any) -> str:
        time.sleep(0.3)
        return write(*given)

    monkeypatch.setattr(kept.parts, "write", slowly)
    monkeypatch.setattr(keeping, "LEAST_S", 0.0)

    async def go() -> None:
        kept.keeping.add(result(1))
        kept.keeping.tend()
        await asyncio.sleep(0.1)
        await kept.keeping.keep()  # as after the last line
        assert kept.numbers() == [1]

    asyncio.run(go())


def test_another_servers_batch_is_not_counted(kept: Kept) -> None:
    async def go() -> None:
        kept.keeping.add(result(1))
        kept.batches.give_back(kept.id, "s")
        assert kept.batches.lease("other") is not None
        with pytest.raises(LeaseLost):
            await kept.keeping.keep()
        with pytest.raises(LeaseLost):
            await kept.lease.renew()

    asyncio.run(go())
    assert kept.numbers() == []


def test_a_batch_that_lasts_has_hundreds_of_parts() -> None:
    age = parts = 0.0
    while age < 3600:
        age, parts = age + pause_s(age), parts + 1
    assert (pause_s(0), pause_s(3600)) == (1, 10)
    assert 100 < parts < 600
