"""Loading from a store that is not in the home."""

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.errors import (
    DigestMismatch,
    StoreFailed,
)
from adapters.registry import Version
from tests.service.workbench import Bench, run


class TestAStoreElsewhere:
    @pytest.fixture
    def bench(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
        """A bench whose versions lie in another folder than its home."""
        (tmp_path / "far").mkdir()
        monkeypatch.setenv("MODISTE_STORE_URL", f"file://{tmp_path}/far")
        bench = Bench(tmp_path)
        bench.publish(1)
        return bench

    def weights(self, bench: Bench) -> Path:
        folder = bench.registry.find("x@1").folder
        return folder / "adapter_model.safetensors"

    def far(self, bench: Bench) -> Path:
        [path] = (bench.work / "far" / "x").glob("*/adapter_model.safetensors")
        return path

    def test_a_version_is_fetched_before_the_engine_reads_it(self, bench: Bench) -> None:
        shutil.rmtree(bench.registry.store.root)

        assert run(lambda: bench.ask("x@1")).proof == "proved"
        assert self.weights(bench).read_bytes() == self.far(bench).read_bytes()

    def test_damage_in_the_cache_quarantines_nothing(self, bench: Bench) -> None:
        self.weights(bench).write_bytes(b"damaged")

        assert run(lambda: bench.ask("x@1")).proof == "proved"

    def test_damage_in_the_store_quarantines(self, bench: Bench) -> None:
        self.weights(bench).unlink()
        self.far(bench).write_bytes(b"damaged")

        with pytest.raises(DigestMismatch):
            run(lambda: bench.ask("x@1"))
        assert bench.registry.find("x@1").state == "quarantined"

    def test_a_store_that_is_away_quarantines_nothing(self, bench: Bench) -> None:
        self.weights(bench).unlink()
        (bench.work / "far").rename(bench.work / "unmounted")
        with pytest.raises(StoreFailed):
            run(lambda: bench.ask("x@1"))
        (bench.work / "unmounted").rename(bench.work / "far")

        assert run(lambda: bench.ask("x@1")).proof == "proved"

    def test_slow_fetches_take_no_threads_from_requests(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrive = threading.Event()
        fetch = bench.registry.fetch

        def slow(version: Version) -> None:
            loops[0].call_soon_threadsafe(begun.set)
            arrive.wait(10)
            fetch(version)

        monkeypatch.setattr(bench.registry, "fetch", slow)
        loops: list[asyncio.AbstractEventLoop] = []
        begun = asyncio.Event()

        async def work() -> str:
            loops.append(asyncio.get_running_loop())
            loops[0].set_default_executor(ThreadPoolExecutor(1))
            asking = asyncio.create_task(bench.ask("x@1"))
            await begun.wait()
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 2)
            arrive.set()
            return (await asking).proof

        assert run(work) == "proved"
