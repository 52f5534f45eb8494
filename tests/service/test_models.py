"""Names and aliases: what answers for them, and from when on."""

import asyncio
import logging
from pathlib import Path
from time import monotonic

import psycopg
import pytest

from adapters.errors import (
    DigestMismatch,
    Quarantined,
    StoreFailed,
)
from adapters.registry import Registry
from service.errors import ModelNotFound, NotReady
from service.record import Record, current_record, set_record
from tests.adapters.parcels import draft, parcel
from tests.postgres import Postgres
from tests.service.workbench import Bench, run


def test_an_alias_takes_effect_only_when_its_version_is_proved(bench: Bench) -> None:
    for value in (1, 2):
        bench.publish(value)
    bench.engine.dishonest.add(bench.digest("x@2"))

    async def work() -> tuple[str, str]:
        bench.registry.promote("x@1")
        await bench.models.catch_up()
        first = (await bench.ask("x")).reference
        bench.registry.promote("x@2")
        await bench.models.catch_up()
        return first, (await bench.ask("x")).reference

    assert run(work) == ("x@1", "x@1")
    assert "proof" in bench.models.failures()["x", "production"]


def test_an_alias_that_failed_for_a_passing_reason_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.models.RETRY_S", 0.0)
    bench.publish(1)
    bench.registry.promote("x@1")
    digest = bench.digest("x@1")
    bench.engine.failing[digest] = StoreFailed("gone")

    async def work() -> str:
        await bench.models.catch_up()
        with pytest.raises(NotReady):
            await bench.ask("x")
        bench.engine.failing.clear()
        await bench.models.catch_up()
        return (await bench.ask("x")).reference

    assert run(work) == "x@1"
    assert bench.models.failures() == {}


def test_without_a_name_the_fitting_adapter_promoted_last_answers(bench: Bench) -> None:
    pairs = {"one": ["en", "fr"], "two": ["en", "fr"], "three": ["en", "de"]}
    for number, (name, languages) in enumerate(pairs.items()):
        bench.publish(number + 1, name, task="translate", languages=languages)

    async def work() -> list[str]:
        for name in ("two", "one"):
            bench.registry.promote(f"{name}@1")
            await bench.models.catch_up()
        asks = (("en", "fr"), (None, "fr-CA"), ("de", "fr"), ("en", "de"))
        return [
            (await bench.ask(None, task="translate", source_lang=s, target_lang=t)).reference
            for s, t in asks
        ]

    assert run(work) == ["one@1", "one@1", "b", "b"]


def test_a_classifier_answers_for_its_own_labels_only(bench: Bench) -> None:
    for number, labels in enumerate((["yes", "no"], ["red", "blue"])):
        bench.publish(number + 1, labels[0], task="classify", labels=labels)
        bench.registry.promote(f"{labels[0]}@1")

    async def work() -> list[str]:
        await bench.models.catch_up()
        asked = (["no", "yes"], ["red", "blue"], ["red", "green"], ["red", "blue", "green"])
        return [
            (await bench.ask(None, task="classify", labels=labels)).reference for labels in asked
        ]

    assert run(work) == ["yes@1", "red@1", "b", "b"]


def test_only_production_answers_where_no_model_is_named(bench: Bench) -> None:
    bench.publish(1)
    bench.registry.promote("x@1", "staging")

    async def work() -> list[str]:
        await bench.models.catch_up()
        return [(await bench.ask(name)).reference for name in (None, "x@staging")]

    assert run(work) == ["b", "x@1"]


@pytest.mark.parametrize("broken", ["revision", "all_aliases"])
def test_a_promotion_that_meets_a_failed_database_is_caught_up_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    bench.publish(1)
    bench.registry.promote("x@1")

    def fails(_: Registry) -> None:
        raise StoreFailed("locked")

    async def work() -> str:
        with monkeypatch.context() as patch:
            patch.setattr(Registry, broken, fails)
            with pytest.raises(StoreFailed):
                await bench.models.catch_up()
        assert not bench.models.ready
        await bench.models.catch_up()
        return (await bench.ask("x")).reference

    assert run(work) == "x@1"
    assert bench.models.ready


def test_a_failure_that_no_one_foresaw_is_tried_again_too(bench: Bench) -> None:
    bench.publish(1)
    bench.registry.promote("x@1")
    bench.engine.failing[bench.digest("x@1")] = RuntimeError("CUDA error")

    async def work() -> str:
        with pytest.raises(RuntimeError):
            await bench.models.catch_up()
        bench.engine.failing.clear()
        await bench.models.catch_up()
        return (await bench.ask("x")).reference

    assert run(work) == "x@1"
    assert bench.registry.find("x@1").state == "ready"


def test_an_alias_that_moved_nowhere_asks_the_database_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    revision = Registry.revision

    def counted(registry: Registry) -> int:
        asked.append(1)
        return revision(registry)

    monkeypatch.setattr(Registry, "revision", counted)
    bench.publish(1)

    async def work() -> None:
        for _ in range(5):
            await bench.models.catch_up()
        bench.publish(2)  # writes, and moves no alias
        for _ in range(5):
            await bench.models.catch_up()

    run(work)
    assert len(asked) == 2


def test_a_database_that_hangs_does_not_stop_the_event_loop(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.ready()
    monkeypatch.setenv("MODISTE_DATABASE_URL", address)
    bench = Bench(tmp_path)
    bench.publish(1)
    bench.registry.promote("x@1")

    async def work(other: psycopg.Connection) -> tuple[float, str]:
        await bench.models.catch_up()
        other.execute("LOCK TABLE alias_moves")
        looking = asyncio.create_task(bench.models.catch_up())
        longest, until = 0.0, monotonic() + 0.5
        while monotonic() < until:
            before = monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, monotonic() - before)
        assert not looking.done()
        answered = (await bench.ask("x")).reference
        other.rollback()
        await looking
        return longest, answered

    with psycopg.connect(address) as other:
        longest, answered = run(lambda: work(other))
    assert longest < 0.3
    assert answered == "x@1"


@pytest.mark.parametrize("moves", ["promotion", "rollback", "canary"])
def test_a_move_by_another_server_is_followed_on_either_database(
    database: str, tmp_path: Path, moves: str
) -> None:
    bench = Bench(tmp_path)
    _tried_out(bench, 50)
    bench.registry.end_canary("x", promote=moves == "rollback")
    elsewhere = Registry.open(bench.registry.home.root)

    async def work() -> set[str]:
        await bench.models.catch_up()
        if moves == "promotion":
            elsewhere.promote("x@2")
        elif moves == "rollback":
            elsewhere.rollback("x")
        else:
            elsewhere.start_canary("x@2", 50)
        await bench.models.catch_up()
        return set(await _sides(bench, [str(number) for number in range(50)]))

    expected = {"promotion": {"x@2"}, "rollback": {"x@1"}, "canary": {"x@1", "x@2"}}
    assert run(work) == expected[moves]


def test_a_database_that_is_away_is_logged_once_and_that_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = [StoreFailed("gone")] * 5

    def stamp(_: Registry) -> int:
        if away:
            raise away.pop()
        return 1

    monkeypatch.setattr(Registry, "stamp", stamp)

    async def work() -> None:
        following = asyncio.create_task(bench.models.follow(0.001))
        async with asyncio.timeout(10):
            while away or not bench.models.ready:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        following.cancel()

    with caplog.at_level(logging.WARNING, "modiste.models"):
        run(work)
    assert [record.getMessage() for record in caplog.records] == [
        "aliases can't be read: gone", "aliases can be read again",
    ]  # fmt: skip


def test_a_version_quarantined_while_known_is_served_again_once_repaired(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_resident=1)
    for value in (1, 2):
        bench.publish(value)
    weights = bench.registry.find("x@1").folder / "adapter_model.safetensors"

    async def ends(reference: str) -> str:
        found = await bench.ask(reference)
        record = current_record()
        assert record is not None
        record.finish()
        return found.reference

    async def work() -> str:
        await ends("x@1")
        await ends("x@2")  # takes the only place
        weights.write_bytes(b"altered")
        with pytest.raises(DigestMismatch):
            await ends("x@1")
        with pytest.raises(Quarantined):
            await ends("x@1")
        folder = parcel(bench.work / "again", 1)
        bench.registry.publish(folder, draft(folder))
        return await ends("x@1")

    assert run(work) == "x@1"


def test_equal_content_under_two_names_answers_under_each(bench: Bench) -> None:
    bench.publish(1, "one")
    bench.publish(1, "two")

    async def work() -> list[str]:
        return [(await bench.ask(f"{name}@1")).reference for name in ("one", "two")]

    assert run(work) == ["one@1", "two@1"]
    assert len(bench.engine.loads) == 1


def test_names_that_do_not_exist_are_not_found(bench: Bench) -> None:
    bench.publish(1)

    for name in ("nobody", "x@9", "x@staging", "x", "a/b"):
        with pytest.raises(ModelNotFound):
            run(lambda name=name: bench.ask(name))
    assert run(lambda: bench.ask("b")).proof == "base"


def _tried_out(bench: Bench, percent: float) -> None:
    for value in (1, 2):
        bench.publish(value)
    bench.registry.promote("x@1")
    bench.registry.start_canary("x@2", percent)


async def _sides(bench: Bench, keys: list[str], reference: str | None = "x") -> list[str]:
    sides = []
    for key in keys:
        set_record(Record("r", "/v1/generate", sticky_key=key))
        sides.append((await bench.models.resolve(reference, task="generate")).reference)
    return sides


def test_a_canary_gets_its_share_and_equal_keys_stay_on_their_side(bench: Bench) -> None:
    _tried_out(bench, 20)
    keys = [f"caller-{number}" for number in range(1000)]

    async def work() -> tuple[list[str], list[str], list[str]]:
        await bench.models.catch_up()
        sides = await _sides(bench, keys), await _sides(bench, keys)
        return *sides, await _sides(bench, keys, None)

    first, second, unnamed = run(work)
    assert first == second == unnamed
    assert 150 < first.count("x@2") < 250


def test_a_growing_share_takes_nobody_back(bench: Bench) -> None:
    _tried_out(bench, 10)
    keys = [f"caller-{number}" for number in range(300)]

    async def work() -> tuple[list[str], list[str]]:
        await bench.models.catch_up()
        before = await _sides(bench, keys)
        bench.registry.start_canary("x@2", 40)
        await bench.models.catch_up()
        return before, await _sides(bench, keys)

    before, after = run(work)
    tried = {key for key, side in zip(keys, before, strict=True) if side == "x@2"}
    assert tried < {key for key, side in zip(keys, after, strict=True) if side == "x@2"}


def test_without_a_key_chance_decides(bench: Bench) -> None:
    _tried_out(bench, 50)

    async def work() -> list[str]:
        await bench.models.catch_up()
        return await _sides(bench, [""] * 200)

    assert 60 < run(work).count("x@2") < 140


def test_a_canary_takes_effect_only_when_it_is_proved_and_ends_with_its_promotion(
    bench: Bench,
) -> None:
    _tried_out(bench, 99)
    bench.engine.dishonest.add(bench.digest("x@2"))

    async def work() -> tuple[set[str], set[str]]:
        await bench.models.catch_up()
        before = set(await _sides(bench, [str(number) for number in range(50)]))
        bench.engine.dishonest.clear()
        bench.registry.publish(bench.work / "x-2", draft(bench.work / "x-2"))  # repairs it
        bench.registry.start_canary("x@2", 99)
        await bench.models.catch_up()
        assert "x@2" in await _sides(bench, [str(number) for number in range(50)])
        bench.registry.end_canary("x", promote=False)
        await bench.models.catch_up()
        return before, set(await _sides(bench, [str(number) for number in range(50)]))

    assert run(work) == ({"x@1"}, {"x@1"})


def test_a_canary_is_not_unloaded_to_make_room(bench: Bench) -> None:
    _tried_out(bench, 10)
    bench.publish(3)

    async def work() -> None:
        await bench.models.catch_up()
        with pytest.raises(NotReady):
            await bench.ask("x@3")

    run(work)
    assert bench.engine.unloaded == []
