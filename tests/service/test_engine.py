"""What the engine's client counts into a request's record."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from service.engine import Engine, MeteredClient
from service.record import Record, set_record

DELTA, CUMULATIVE = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE
FINAL = RequestOutputKind.FINAL_ONLY
PROMPT = [1, 2, 3, 4]


class FakeClient:
    """Gives these outputs: for each the choices' token ids, by the choice's number."""

    model_config = SimpleNamespace(max_model_len=64, dtype="torch.float32")

    def __init__(
        self, *outputs: dict[int, list[int]], breaks: bool = False, ends: str = "stop"
    ) -> None:
        self.outputs, self.breaks, self.ends = outputs, breaks, ends
        self.engine_core = SimpleNamespace(get_output_async=None)

    async def generate(self, *_args: Any, **_more: Any) -> AsyncIterator[Any]:
        for number, choices in enumerate(self.outputs, start=1):
            yield SimpleNamespace(
                prompt_token_ids=PROMPT, num_cached_tokens=2, metrics=None,
                finished=number == len(self.outputs) and not self.breaks,
                outputs=[
                    SimpleNamespace(
                        index=i, token_ids=ids, logprobs=[{7: SimpleNamespace(logprob=-1.0)}],
                        finish_reason=self.ends if number == len(self.outputs) else None,
                    )
                    for i, ids in choices.items()
                ],
            )  # fmt: skip
        if self.breaks:
            raise RuntimeError("the engine broke")


def counted(client: FakeClient, kind: RequestOutputKind, read: int = 99) -> Record:
    record = Record("id", "/v1/generate")

    async def ask() -> None:
        set_record(record)
        outputs = MeteredClient(client).generate(None, SamplingParams(output_kind=kind), "r")  # type: ignore[arg-type]
        async for _ in outputs:
            nonlocal read
            read -= 1
            if read == 0:
                break

    asyncio.run(ask())
    return record


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        (FINAL, [{0: [5, 6, 7], 1: [5, 6]}]),
        (DELTA, [{0: [5]}, {1: [5]}, {0: [6, 7]}, {1: [6]}]),
        (CUMULATIVE, [{0: [5]}, {1: [5]}, {0: [5, 6, 7]}, {1: [5, 6]}]),
    ],
)
def test_all_choices_are_counted_however_they_come(
    kind: RequestOutputKind, outputs: list[dict[int, list[int]]]
) -> None:
    record = counted(FakeClient(*outputs), kind)
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (4, 2, 5)
    assert record.answered
    assert not record.failed


@pytest.mark.parametrize("kind", [DELTA, CUMULATIVE])
def test_what_was_written_before_the_caller_went_away_is_counted(kind: RequestOutputKind) -> None:
    record = counted(FakeClient({0: [5]}, {0: [6] if kind is DELTA else [5, 6]}), kind, read=1)
    assert (record.completion_tokens, record.answered) == (1, False)


def test_what_was_written_before_the_engine_broke_is_counted() -> None:
    record = Record("id", "/v1/generate")

    async def ask() -> None:
        set_record(record)
        client: Any = FakeClient({0: [5, 6]}, breaks=True)
        async for _ in MeteredClient(client).generate(None, SamplingParams(), "r"):
            pass

    with pytest.raises(RuntimeError):
        asyncio.run(ask())
    assert (record.prompt_tokens, record.completion_tokens, record.failed) == (4, 2, True)


@pytest.mark.parametrize(("ends", "aborted"), [("stop", False), ("length", False), ("abort", True)])
def test_an_answer_that_the_engine_let_go_of_is_marked(ends: str, aborted: bool) -> None:
    for outputs in ([{0: []}], [{0: [5]}, {0: [5], 1: []}]):  # refused, and ended on its way
        assert counted(FakeClient(*outputs, ends=ends), DELTA).aborted is aborted


def test_a_request_has_so_many_sequences_at_once_in_the_engine_as_it_may() -> None:
    at_once, most = 0, 0

    class Busy(FakeClient):
        async def generate(self, *_args: Any, **_more: Any) -> AsyncIterator[Any]:
            nonlocal at_once, most
            at_once, most = at_once + 1, max(most, at_once + 1)
            await asyncio.sleep(0.01)
            async for output in super().generate():
                yield output
            at_once -= 1

    async def ask(record: Record) -> None:
        set_record(record)
        client: Any = MeteredClient(Busy({0: [5]}))  # type: ignore[arg-type]

        async def sequence() -> None:
            async for _ in client.generate(None, SamplingParams(), "r"):
                pass

        await asyncio.gather(*(sequence() for _ in range(6)))

    asyncio.run(ask(Record("id", "/v1/generate")))
    assert most == 6
    most = 0
    asyncio.run(ask(Record("id", "/v1/generate", sequences=asyncio.Semaphore(2))))
    assert most == 2


def test_the_traffic_knows_which_adapters_are_waited_for() -> None:
    async def ask() -> None:
        set_record(Record("id", "/v1/generate"))
        client: Any = MeteredClient(FakeClient({0: [5]}))  # type: ignore[arg-type]
        lora = SimpleNamespace(lora_name="digest")
        async for _ in client.generate(None, SamplingParams(), "r", lora_request=lora):
            assert (client.traffic.interactive, client.traffic.adapters) == (1, {"digest"})
        assert (client.traffic.interactive, client.traffic.adapters) == (0, set())
        async for _ in client.generate(None, SamplingParams(), "r", lora_request=None):
            assert (client.traffic.interactive, client.traffic.adapters) == (1, set())

    asyncio.run(ask())


def test_the_proof_of_a_version_is_not_the_requests_usage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.engine.Renderer", lambda tokenizer: tokenizer)
    record = Record("id", "/v1/generate")
    client: Any = FakeClient({0: [7]})

    async def prove() -> list[float]:
        set_record(record)
        return await Engine(client, None).probe(PROMPT, [7], None)  # type: ignore[arg-type]

    assert asyncio.run(prove()) == [-1.0]
    assert (record.prompt_tokens, record.answered, record.first_token) == (0, False, None)
