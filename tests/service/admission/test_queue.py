"""The queue before a stand-in engine, in a time that passes by itself."""

import asyncio
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admission.pace import Size
from service.admission.presence import LATELY_S, PEAK_S
from service.admission.room import Step
from service.admission.ticket import Want
from service.record import PRIORITY_BATCH, Record
from tests.service.admission.busy import TOKENS, Busy, now, run


def waits(records: list[Record]) -> list[float]:
    return [record.queued_s for record in records]


def test_requests_start_at_once_while_there_is_room() -> None:
    async def work() -> None:
        busy = Busy(sequences=4)
        assert waits(await busy.arrive(4)) == [0.0] * 4
        assert busy.is_idle()
        assert busy.counted("modiste_admissions_total", priority="interactive") == 4

    run(work)


def test_no_more_run_than_there_is_room_for_and_none_is_lost() -> None:
    async def work() -> None:
        busy = Busy(sequences=4)
        records = await busy.arrive(40)
        assert busy.most_at_once == 4
        assert sorted(waits(records)) == [float(number // 4) for number in range(40)]
        assert now() == pytest.approx(10)  # no place was ever empty
        assert busy.is_idle()
        assert busy.counted("modiste_queued_requests") == 0

    run(work)


async def flooded(busy: Busy, seconds: float) -> "asyncio.Task[Any]":
    """Ten times what the engine can do, for so long; it has gone on for 10 s."""

    async def flood() -> list[Record]:
        asked = []
        for _ in range(int(seconds * 10)):
            asked.append(asyncio.create_task(busy.ask("flood", wait_s=5)))
            asked += [asyncio.create_task(busy.ask("flood", wait_s=5)) for _ in range(3)]
            await asyncio.sleep(0.1)
        return await asyncio.gather(*asked)

    task = asyncio.create_task(flood())
    await asyncio.sleep(10)
    return task


def test_a_place_is_kept_for_a_project_that_was_there_lately() -> None:
    async def work() -> None:
        busy = Busy(sequences=4)
        await busy.ask("light")
        flood = asyncio.create_task(busy.arrive(90, project="flood"))
        for _ in range(8):
            await asyncio.sleep(2.3)  # within the second that all places of the flood take
            assert (await busy.ask("light")).queued_s == 0
        assert busy.most_at_once == 4
        assert 29 <= max(waits(await flood)) <= 30  # three places were the flood's
        assert busy.is_idle()

    run(work)


def test_as_many_places_are_kept_as_somebody_had_at_once_a_moment_ago() -> None:
    async def work() -> None:
        busy = Busy(sequences=16)
        await busy.arrive(3, project="light")
        flood = asyncio.create_task(busy.arrive(150, project="flood"))
        for _ in range(4):
            await asyncio.sleep(2.3)
            assert waits(await busy.arrive(3, project="light")) == [0, 0, 0]
        await asyncio.sleep(2 * PEAK_S)
        assert busy.at_once == 0
        assert max(waits(await flood)) <= 12  # 13 places were the flood's
        await busy.arrive(9, project="light")
        flood = asyncio.create_task(busy.arrive(60, project="flood"))
        await asyncio.sleep(0.1)
        assert busy.at_once == 12  # a quarter is kept at most
        await flood

    run(work)


def test_a_project_that_takes_less_than_its_share_may_come_in_bursts() -> None:
    async def work() -> None:
        busy = Busy(sequences=8)
        flood = await flooded(busy, 40)
        for _ in range(4):
            records = await busy.arrive(4, project="light", wait_s=5)
            assert max(waits(records)) <= 1.01  # the next places that become free are its own
            await asyncio.sleep(4)
        await flood

    run(work)


def test_no_place_stays_empty_for_one_who_has_not_been_there_for_long() -> None:
    async def work() -> None:
        busy = Busy(sequences=4)
        await busy.ask("light")
        await asyncio.sleep(2 * LATELY_S)
        records = await busy.arrive(40, project="flood")
        assert max(waits(records)) == 9

    run(work)


@pytest.mark.parametrize("weights", [{}, {"a": 2.0}, {"a": 9.0}])
def test_no_place_stays_empty_while_all_wait(weights: dict[str, float]) -> None:
    async def work() -> None:
        busy = Busy(sequences=8, weights=weights)
        began = now()
        asked = [busy.arrive(40, project="a"), busy.arrive(40, project="b")]
        await asyncio.gather(*asked)
        assert now() - began <= 12  # ten seconds' work, and the last of one project alone

    run(work)


def test_one_that_would_wait_too_long_is_refused_at_once() -> None:
    async def work() -> None:
        busy = Busy(sequences=4)
        flood = await flooded(busy, 20)
        before = now()
        refused = await busy.ask("flood", wait_s=1)
        assert refused.failed
        assert now() == before
        error = busy.refused[-1]
        assert error.queue is not None
        assert error.queue["refused"] == "deadline"
        assert 1 <= error.queue["expected_wait_s"] <= 6
        assert error.retry_after_s == max(1, -(-(error.queue["expected_wait_s"] - 1) // 1))
        records = await flood
        served = [record for record in records if not record.failed]
        assert 4 * 20 <= len(served) <= 4 * 26  # full all the time, and until the queue is empty
        assert max(waits(served)) <= 5
        assert busy.is_idle()

    run(work)


def test_one_whose_time_is_up_is_refused_then_and_never_starts() -> None:
    async def work() -> None:
        busy = Busy(sequences=1)
        first = asyncio.create_task(busy.ask("first", took_s=10))
        await asyncio.sleep(0)
        late = await busy.ask("late", wait_s=2)
        assert late.failed
        assert now() == pytest.approx(2)
        assert busy.refused[0].queue is not None
        assert busy.refused[0].queue["refused"] == "expired"
        await first
        assert busy.started == ["first"]
        assert busy.is_idle()
        assert busy.counted("modiste_refusals_total", reason="expired") == 1

    run(work)


def test_one_whose_caller_has_gone_leaves_the_queue() -> None:
    async def work() -> None:
        busy = Busy(sequences=1)
        asked = [asyncio.create_task(busy.ask(name)) for name in ("first", "gone", "last")]
        await asyncio.sleep(0.5)
        asked[1].cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert busy.started == ["first", "last"]
        assert now() == pytest.approx(2)
        assert busy.is_idle()
        assert busy.counted("modiste_refusals_total", reason="gone") == 1
        assert busy.counted("modiste_queued_requests") == 0

    run(work)


def test_one_who_goes_as_a_place_becomes_free_does_not_take_it() -> None:
    """Its record may have ended before its task hears of the end."""

    async def work() -> None:
        busy = Busy(sequences=1)
        first = asyncio.create_task(busy.ask("first", took_s=5))
        await asyncio.sleep(1)
        record = Record("r", "/v1/generate")
        asking = asyncio.create_task(busy.admission.enter(record, Want(Size(0, 1, TOKENS))))
        await asyncio.sleep(1)
        asking.cancel()
        record.finish()
        first.cancel()
        await asyncio.gather(asking, first, return_exceptions=True)
        assert busy.is_idle()
        assert busy.counted("modiste_refusals_total", reason="gone") == 1

    run(work)


def test_another_project_hardly_notices_one_that_floods() -> None:
    async def work() -> None:
        busy = Busy(sequences=4)
        flood = await flooded(busy, 30)
        light = []
        for _ in range(20):
            light.append(asyncio.create_task(busy.ask("light", wait_s=5)))
            await asyncio.sleep(1)
        records = await asyncio.gather(*light)
        assert not any(record.failed for record in records)
        assert statistics.quantiles(waits(records), n=20)[-1] <= 1.01  # the next free place
        await flood

    run(work)


def test_projects_share_by_their_weights() -> None:
    async def work() -> None:
        busy = Busy(sequences=4, weights={"paid": 3.0})
        both = asyncio.gather(
            busy.arrive(100, project="paid"), busy.arrive(100, project="free")
        )  # fmt: skip
        await asyncio.sleep(20.5)
        served = busy.started.count("paid"), busy.started.count("free")
        assert sum(served) == 84
        assert served[0] / served[1] == pytest.approx(3, rel=0.1)
        both.cancel()
        await asyncio.gather(both, return_exceptions=True)

    run(work)


def test_who_fills_the_queue_gives_way_to_others() -> None:
    async def work() -> None:
        busy = Busy(sequences=1, requests=10)
        flood = asyncio.gather(*(busy.ask("flood") for _ in range(30)))
        await asyncio.sleep(0)
        assert len(busy.refused) == 19  # one runs, ten wait
        light = await busy.ask("light")
        assert not light.failed
        assert light.queued_s <= 2
        assert sum(record.failed for record in await flood) == 20
        assert {error.queue["refused"] for error in busy.refused if error.queue} == {"queue_full"}

    run(work)


def test_the_queue_is_bounded_in_tokens_too() -> None:
    async def work() -> None:
        busy = Busy(sequences=1, tokens=5 * TOKENS)
        records = await busy.arrive(10)
        assert sum(record.failed for record in records) == 4

    run(work)


def test_wide_requests_are_let_in_whole_and_leave_room_for_others() -> None:
    async def work() -> None:
        busy = Busy(sequences=8)
        wide = [asyncio.create_task(busy.ask(f"wide-{number}", calls=40)) for number in range(3)]
        await asyncio.sleep(0.5)
        assert (busy.at_once, busy.started) == (8, ["wide-0", "wide-1"])
        small = asyncio.create_task(busy.ask("small"))
        records = await asyncio.gather(*wide, small)
        assert not any(record.failed for record in records)
        assert busy.most_at_once <= 8
        assert records[-1].queued_s <= 10  # one of the wide ones has ended
        assert busy.is_idle()

    run(work)


def test_places_are_free_as_the_parts_of_a_request_end() -> None:
    async def work() -> None:
        busy = Busy(sequences=4)
        record = Record("r", "/v1/generate")
        await busy.admission.enter(record, Want(Size(0, 2, TOKENS), 2))
        assert busy.admission.room.running == 2
        async with busy.traffic.passing(record, None):
            assert busy.admission.room.running == 2
        assert busy.admission.room.running == 1
        async with busy.traffic.passing(record, None), busy.traffic.passing(record, None):
            assert busy.admission.room.running == 2  # one more than it had said
        assert busy.admission.room.running == 0
        record.finish()
        async with busy.traffic.passing(record, None):
            assert busy.admission.room.running == 0  # an end is an end

    run(work)


def test_a_line_of_a_batch_is_never_refused_and_gives_way() -> None:
    async def work() -> None:
        busy = Busy(sequences=2, requests=2)
        lines = asyncio.gather(
            *(busy.ask("batch", priority=PRIORITY_BATCH, own=True, wait_s=0) for _ in range(40))
        )
        await asyncio.sleep(1.5)
        flood = await flooded(busy, 20)
        await flood
        assert not any(record.failed for record in await lines)
        begun = busy.started.index("flood")
        beside = busy.started[begun:][:40].count("batch")
        assert 1 <= beside <= 6  # about a twentieth, and not nothing
        assert busy.is_idle()

    run(work)


def test_batches_hear_of_a_request_that_waits() -> None:
    async def work() -> None:
        busy = Busy(sequences=1)
        heard = []
        asked = asyncio.create_task(busy.ask(took_s=3))
        await asyncio.sleep(1)
        busy.traffic.on_arrival.append(lambda: heard.append(now()))
        waiting = asyncio.create_task(busy.ask())
        await asyncio.sleep(1)
        assert heard == [1.0]
        assert busy.traffic.interactive == 2
        await asyncio.gather(asked, waiting)
        assert busy.traffic.interactive == 0

    run(work)


def test_the_engines_own_queue_keeps_requests_back_until_it_is_short() -> None:
    async def work() -> None:
        busy = Busy(sequences=16)
        first = asyncio.create_task(busy.ask(took_s=9))
        await asyncio.sleep(1)
        busy.admission.observe(Step(tokens=10, waiting=5, cache=0.5))
        second = asyncio.create_task(busy.ask("second"))
        await asyncio.sleep(0.1)
        assert busy.started == ["p"]
        busy.admission.observe(Step(tokens=10, waiting=0, cache=0.99))
        assert busy.started == ["p"]
        busy.admission.observe(Step(tokens=10, waiting=0, cache=0.5))
        await asyncio.sleep(0)
        assert busy.started == ["p", "second"]
        busy.admission.observe(Step(tokens=10, waiting=5, cache=0.5))
        third = asyncio.create_task(busy.ask("third"))
        await asyncio.sleep(2)  # an engine that says no more is not believed for ever
        assert busy.started[-1] == "third"
        await asyncio.gather(first, second, third)

    run(work)


def test_the_pace_is_that_of_the_engines_steps() -> None:
    async def work() -> None:
        busy = Busy(sequences=1)
        busy.admission.engine_tells = True
        asked = [asyncio.create_task(busy.ask(took_s=100)) for _ in range(3)]
        for _ in range(100):
            await asyncio.sleep(0.1)
            busy.admission.observe(Step(tokens=5, waiting=0, cache=0.1))
        assert busy.admission.pace.rate == pytest.approx(50, rel=0.02)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    run(work)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]), st.floats(0, 2), st.integers(1, 9),
            st.sampled_from([0.0, 0.5, 3.0, 50.0]), st.sampled_from([None, 0.0, 0.3, 2.0]),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_whatever_comes_and_goes_all_places_are_free_at_the_end(asked: list[Any]) -> None:
    async def work() -> None:
        busy = Busy(sequences=3, requests=10)

        async def one(project: str, after: float, calls: int, wait_s: float, stays: Any) -> None:
            await asyncio.sleep(after)
            asking = busy.ask(project, wait_s=wait_s, calls=calls, took_s=0.2)
            try:
                await asyncio.wait_for(asking, stays)
            except TimeoutError:
                return

        await asyncio.gather(*(one(*how) for how in asked))
        assert busy.is_idle()
        assert busy.traffic.interactive == busy.counted("modiste_queued_requests") == 0

    run(work)
