"""A batch keeps its order and fails or is cancelled as a whole."""

import asyncio

import pytest

from service.errors import BadRequest
from service.tasks.batch import mean_probability, together
from tests.service.tasks.fake import BASE, FakeEngine, Sampling


def test_results_keep_the_order_of_the_calls() -> None:
    async def late(number: int) -> int:
        await asyncio.sleep(0.01 * (3 - number))
        return number

    assert asyncio.run(together(late(number) for number in range(4))) == [0, 1, 2, 3]


def test_one_failure_cancels_all_others_and_is_raised_itself() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise BadRequest("wrong", param="text")

    async def nested() -> None:
        await together([waits(), fails()])

    with pytest.raises(BadRequest, match="wrong"):
        asyncio.run(together([waits(), nested(), waits()]))
    assert ended == ["cancelled"] * 3


def test_cancelling_a_batch_cancels_every_engine_request() -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        engine.gate = asyncio.Event()
        calls = (engine.generate([1], Sampling(max_tokens=1), BASE) for _ in range(5))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(together(calls), timeout=0.05)

    asyncio.run(scenario())
    assert (engine.cancelled, engine.running) == (5, 0)


def test_the_mean_probability_is_geometric() -> None:
    output = asyncio.run(
        FakeEngine(lambda *_: "ab").generate(
            [1], Sampling(max_tokens=9, chosen_logprobs=True), BASE
        )
    )
    output.logprobs = [-1.0, -3.0]
    assert mean_probability(output) == pytest.approx(0.1353, abs=1e-4)
    output.logprobs = None
    assert mean_probability(output) == 0.0
