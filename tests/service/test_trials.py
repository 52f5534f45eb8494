"""Canaries under observation: whose answers are counted, and what a rule then does."""

from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapters.errors import StoreFailed
from adapters.registry import Registry
from adapters.rules import Rule
from service.record import Record, current_record
from service.telemetry import Metrics
from service.trials import Observer
from tests.service.workbench import Bench, run

KEY = ("x", "production")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """`x@1` live and `x@2` tried out with half of the requests."""
    made = Bench(tmp_path)
    for value in (1, 2):
        made.publish(value)
    made.registry.promote("x@1")
    made.registry.start_canary("x@2", 50, rule=Rule(least_answers=10))
    return made


async def answer(
    bench: Bench, reference: str, *, status: int = 200, answered: bool = True, failed: bool = False
) -> Record:
    await bench.ask(reference)
    record = current_record()
    assert record is not None
    record.status, record.answered, record.failed = status, answered, failed
    record.finish()
    return record


def observer_of(bench: Bench, metrics: Metrics | None = None) -> Observer:
    metrics = metrics or Metrics(CollectorRegistry())
    return Observer(bench.registry, "here", bench.models, metrics)


def counts(bench: Bench) -> dict[int, tuple[int, int]]:
    sides = bench.registry.trials()[KEY].sides
    return {number: (side.answers, side.errors) for number, side in sides.items()}


def test_each_side_is_counted_and_only_by_its_alias(bench: Bench) -> None:
    async def work() -> list[int]:
        await bench.models.catch_up()
        observer = observer_of(bench)
        records = [await answer(bench, "x") for _ in range(40)]
        others = [await answer(bench, reference) for reference in ("x@1", "x@2")]
        for record in records + others:
            observer.observe(record)
        await observer.report()
        return [r.tried.number for r in records if r.tried is not None]

    chosen = run(work)
    assert counts(bench) == {number: (chosen.count(number), 0) for number in (1, 2)}
    assert len(chosen) == 40


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        ({"status": 200}, (1, 0)),
        ({"status": 500, "answered": False}, (1, 1)),
        ({"status": 200, "answered": False, "failed": True}, (1, 1)),  # cut in its stream
        ({"status": 400, "answered": False, "failed": True}, (0, 0)),  # the caller's mistake
        ({"status": 200, "answered": False}, (0, 0)),  # its caller went away
        ({"status": 0, "answered": False}, (0, 0)),
    ],
)
def test_an_answer_counts_by_its_outcome(
    bench: Bench, outcome: dict[str, int], counted: tuple[int, int]
) -> None:
    async def work() -> int:
        await bench.models.catch_up()
        observer = observer_of(bench)
        record = await answer(bench, "x", **outcome)
        observer.observe(record)
        await observer.report()
        assert record.tried is not None
        return record.tried.number

    number = run(work)
    assert counts(bench)[number] == counted


def test_a_rule_ends_the_canary_and_all_go_back(bench: Bench) -> None:
    metrics = Metrics(CollectorRegistry())

    async def work() -> set[str]:
        await bench.models.catch_up()
        observer = observer_of(bench, metrics)
        for _ in range(80):
            record = await answer(bench, "x")
            if record.tried is not None and record.tried.number == 2:
                record.status = 500
            observer.observe(record)
        await observer.report()
        await bench.models.catch_up()
        return {(await bench.ask("x")).reference for _ in range(20)}

    assert run(work) == {"x@1"}
    ended = metrics.registry.get_sample_value(
        "modiste_canaries_ended_total", {"how": "rolled_back"}
    )
    assert ended == 1


def test_counts_that_met_a_failed_database_are_reported_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StoreFailed("away")

    async def work() -> None:
        await bench.models.catch_up()
        observer = observer_of(bench)
        observer.observe(await answer(bench, "x"))
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "count", fails)
            with pytest.raises(StoreFailed):
                await observer.report()
        await observer.report()

    run(work)
    assert sum(answers for answers, _ in counts(bench).values()) == 1


def test_what_ended_is_forgotten(bench: Bench) -> None:
    async def work() -> list[tuple[tuple[str, str], datetime]]:
        await bench.models.catch_up()
        observer = observer_of(bench)
        observer.observe(await answer(bench, "x"))
        await observer.report()
        bench.registry.end_canary("x", promote=False)
        await bench.models.catch_up()
        await observer.report()
        return list(observer._sides)

    assert run(work) == []
