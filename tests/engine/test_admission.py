"""The queue before the real engine: who floods it, who is refused, and who goes away."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from adapters.registry import Registry
from service.keys import Keys
from tests.made import add_tiny_base
from tests.serving import Reached, Running, start, stop

COMPLETION = {"model": "tiny", "prompt": "save the file", "max_tokens": 48, "ignore_eos": True}
PLACES = 4


def value(text: str, name: str) -> float:
    """A metric without labels, or the sum of its series."""
    lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def metric(client: httpx.AsyncClient, name: str) -> float:
    return value((await client.get("/metrics")).text, name)


async def until(check: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """How long it took, in seconds."""
    began = time.perf_counter()
    while not await check():
        assert time.perf_counter() - began < seconds
        await asyncio.sleep(0.01)
    return time.perf_counter() - began


async def cut_streams(client: httpx.AsyncClient, count: int) -> float:
    """Streams that are cut after 0 to 0.5 s. How long until all of their places are free."""
    body = {**COMPLETION, "max_tokens": 400, "stream": True}
    patient = {"x-modiste-timeout-s": "600"}

    async def begin() -> None:
        async with client.stream("POST", "/v1/completions", json=body, headers=patient) as answer:
            assert answer.status_code == 200
            async for _ in answer.aiter_lines():
                pass

    async def cut(number: int) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(begin(), (number * 37 % 100) / 200)

    await asyncio.gather(*(cut(number) for number in range(count)))

    async def free() -> bool:
        text = (await client.get("/metrics")).text
        names = ("modiste_running_sequences", "modiste_queued_requests")
        return not any(value(text, name) for name in names)

    return await until(free, 10)


@asynccontextmanager
async def reached(server: Reached, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.url, timeout=60, limits=limits, headers=headers
    ) as client:
        yield client


def test_streams_cut_at_random_leave_all_places_free_within_a_second(server: Running) -> None:
    async def work() -> float:
        async with reached(server) as client:
            return await cut_streams(client, 60)

    assert asyncio.run(work()) <= 1
    answer = server.client().post("/v1/completions", json={**COMPLETION, "max_tokens": 1})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("header", "given"),
    [
        ("x-modiste-timeout-s", "soon"), ("x-modiste-timeout-s", "-1"),
        ("x-modiste-timeout-s", "nan"), ("x-modiste-priority", "urgent"),
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_named(server: Running, header: str, given: str) -> None:
    answer = server.client().post("/v1/completions", json=COMPLETION, headers={header: given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == header
    assert given in answer.json()["error"]["message"]


def test_every_inference_route_passes_the_queue(server: Running) -> None:
    client = server.client()
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {
            "model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "n": 3,
        },
        "/v1/completions": {"model": "one", "prompt": ["a", "b"], "max_tokens": 2},
        "/v1/responses": {"model": "one", "input": "a", "max_output_tokens": 2},
        "/v1/generate": {"prompt": ["a", "b", "c"], "max_tokens": 2, "timeout_s": 5},
        "/v1/translate": {"text": "save it", "source_lang": "en", "target_lang": "fr"},
        "/v1/answer": {"question": "a?", "context": ["b", "c"], "max_tokens": 2},
        "/v1/classify": {"model": "mood", "text": ["good", "bad"]},
    }  # fmt: skip
    name = 'modiste_admissions_total{priority="evaluation"}'

    def admitted() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = admitted()
    for path, body in asked.items():
        answer = client.post(path, json=body, headers={"x-modiste-priority": "evaluation"})
        assert answer.status_code == 200, answer.text
    assert admitted() - before == len(asked)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of two projects that lets few sequences run at once."""
    home = tmp_path_factory.mktemp("small")
    registry = Registry.open(home)
    base = add_tiny_base(registry)
    process, url = start(
        home, MODISTE_MAX_RUNNING_SEQUENCES=str(PLACES), MODISTE_WORKER_JOBS="0",
    )  # fmt: skip
    yield Running(registry, base, url, home / "serve.log", process)
    stop(process)


@pytest.fixture(scope="module")
def keys(small: Running) -> dict[str, str]:
    made = Keys(small.registry.database)
    found = {name: f"Bearer {made.create(name)[1]}" for name in ("flood", "light")}
    time.sleep(1.5)  # the server reads its keys every second
    return found


@asynccontextmanager
async def flooding(
    small: Running, keys: dict[str, str], at_once: int, wait_s: float
) -> AsyncIterator[list[httpx.Response]]:
    """So many callers of one project who ask again and again."""
    answers: list[httpx.Response] = []
    headers = {"authorization": keys["flood"], "x-modiste-timeout-s": str(wait_s)}
    async with reached(small, **headers) as client:

        async def again() -> None:
            while True:
                answers.append(await client.post("/v1/completions", json=COMPLETION))
                if answers[-1].status_code != 200:
                    await asyncio.sleep(0.2)

        tasks = [asyncio.create_task(again()) for _ in range(at_once)]
        await asyncio.sleep(3)
        yield answers
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
def test_a_project_that_floods_waits_for_itself(small: Running, keys: dict[str, str]) -> None:
    async def work() -> None:
        async with (
            flooding(small, keys, at_once=40, wait_s=20) as flood,
            reached(small, authorization=keys["light"]) as client,
        ):
            took = []
            for _ in range(15):
                answer = await client.post("/v1/completions", json=COMPLETION)
                assert answer.status_code == 200
                took.append(answer.elapsed.total_seconds())
            theirs = [answer.elapsed.total_seconds() for answer in flood if answer.is_success]
        assert statistics.median(took) < statistics.median(theirs) / 2

    asyncio.run(work())


@pytest.mark.slow
def test_what_can_not_start_in_time_is_refused_quickly(
    small: Running, keys: dict[str, str]
) -> None:
    async def work() -> None:
        async with (
            flooding(small, keys, at_once=40, wait_s=60) as flood,
            reached(small, authorization=keys["flood"]) as client,
        ):
            took = []
            for number in range(20):
                path = ("/v1/completions", "/v1/generate")[number % 2]
                short = {"x-modiste-timeout-s": "0.05"} if number % 2 == 0 else {}
                body = dict(COMPLETION, stream=number % 4 == 0)
                if number % 2:
                    body = {"prompt": "save", "timeout_s": 0.05, "stream": number % 4 == 1}
                answer = await client.post(path, json=body, headers=short)
                assert answer.status_code == 429, answer.text
                assert int(answer.headers["retry-after"]) >= 1
                queue = answer.json()["error"]["queue"]
                assert queue["refused"] == "deadline"
                assert queue["expected_wait_s"] > 0.05
                assert queue["queued"] >= 10
                took.append(answer.elapsed.total_seconds())
            assert statistics.median(took) < 0.5  # of seconds that it would have waited
            assert all(answer.is_success for answer in flood)

    asyncio.run(work())


@pytest.mark.slow
def test_one_who_leaves_the_queue_never_reaches_the_engine(
    small: Running, keys: dict[str, str]
) -> None:
    async def work() -> None:
        async with (
            flooding(small, keys, at_once=20, wait_s=60),
            reached(small, authorization=keys["flood"]) as client,
        ):
            before = await metric(client, "modiste_refusals_total")
            asking = client.post("/v1/completions", json=COMPLETION)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asking, 0.1)

            async def gone() -> bool:
                return await metric(client, "modiste_refusals_total") == before + 1

            assert await until(gone, 5) < 1
            text = (await client.get("/metrics")).text
            assert 'modiste_refusals_total{reason="gone"}' in text
            assert value(text, "modiste_running_sequences") <= PLACES
            assert value(text, "vllm:num_requests_running") <= PLACES

    asyncio.run(work())


@pytest.mark.slow
def test_hundreds_of_cut_streams_leave_all_places_free(server: Running) -> None:
    async def work() -> float:
        async with reached(server) as client:
            return await cut_streams(client, 500)

    assert asyncio.run(work()) <= 1
