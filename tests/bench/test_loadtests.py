"""What lists, labels and shared prompts are measured by."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import trace
from bench.client import LoadError
from bench.harness import Report
from bench.lists import LABELS, SCENARIOS
from bench.shared import shareable
from bench.whole import WholeClient, run_block


@asynccontextmanager
async def echoing(status: str = "200 OK") -> AsyncIterator[tuple[int, list[int]]]:
    """A server that answers with what it was sent, later for even numbers; and how many at once."""
    running, most = 0, [0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length is not None
            body = await reader.readexactly(int(length[1]))
            running += 1
            most[0] = max(most[0], running)
            await asyncio.sleep(0.05 if json.loads(body)["n"] % 2 == 0 else 0.01)
            running -= 1
            writer.write(
                f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
            )

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], most


def test_answers_come_in_the_order_of_the_requests_over_so_many_connections() -> None:
    async def main() -> None:
        async with echoing() as (port, most):
            block = await run_block(port, "/x", [{"n": n} for n in range(12)], 4)
            assert [answer["n"] for answer in block.answers] == list(range(12))
            assert most == [4]
            assert all(took >= 0.05 for took in block.took_s[::2])
            assert block.wall_s < sum(block.took_s)

    asyncio.run(main())


def test_a_refusal_fails_the_block() -> None:
    async def main() -> None:
        async with echoing("503 Busy") as (port, _):
            with pytest.raises(ExceptionGroup) as caught:
                await run_block(port, "/x", [{"n": 1}], 1)
            assert "503" in repr(caught.value.exceptions[0])

    asyncio.run(main())


def test_a_server_that_is_not_there_is_told() -> None:
    with WholeClient() as client, pytest.raises(LoadError, match="Connection"):
        client.run(1, "/x", [{"n": 1}], 1)


def test_a_chat_says_what_the_list_asks() -> None:
    translate, classify = SCENARIOS
    sentence = "Save the file."

    assert translate.whole("m", [sentence])["text"] == [sentence]
    assert [m["content"] for m in translate.chat("m", sentence)["messages"]] == [
        "You translate from English to French. Reply with the translation only.", sentence,
    ]  # fmt: skip
    assert classify.whole("m", [sentence])["labels"] == list(LABELS)
    assert ", ".join(LABELS) in classify.chat("m", sentence)["messages"][0]["content"]
    assert translate.chat("m", sentence)["max_tokens"] == translate.of_list["max_tokens"]


def test_whole_blocks_in_common_can_be_shared() -> None:
    start = list(range(10))

    assert shareable([[*start, 1], [*start, 2]], block=4) == 8
    assert shareable([start, start], block=4) == 8
    assert shareable([start[:8], start[:8]], block=4) == 4  # the last token must be computed
    assert shareable([[9, *start], start], block=4) == 0


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=6))
def test_no_prompt_shares_more_than_it_has_with_another(prompts: list[list[int]]) -> None:
    found = shareable(prompts, block=3)

    assert found % 3 == 0
    assert found <= sum(len(prompt) - 1 for prompt in prompts[1:])
    assert shareable([*prompts, *prompts], block=3) >= 2 * found


def outcome(at_s: float, late_ms: float, error: str | None = None) -> dict[str, object]:
    """A line of what `modiste loadtest` writes."""
    answer = {"error": error, "end_to_end_ms": 5.0}
    return {"kind": "chat_stream", "arrived_s": at_s, "late_ms": late_ms, "answer": answer}


def test_a_replay_that_was_sent_late_or_failed_is_seen(tmp_path: Path) -> None:
    (tmp_path / "mooncake.html").touch()
    on_time = [outcome(number / 2, 1.0) for number in range(200)]
    late = [*on_time[:-3], *(outcome(99.0, 60.0) for _ in range(3))]
    slow = [*on_time, outcome(100.0, 2000.0), outcome(99.0, 1.0, "HTTP 503")]
    verdicts = []
    for outcomes in (on_time, late, slow):
        report = Report("trace")
        trace.claim(report, trace.read(1.0, holds=True, outcomes=outcomes, folder=tmp_path), "b")
        verdicts.append([claim.holds for claim in report.claims])

    assert verdicts == [
        [True, True, True, True], [False, True, True, True], [True, False, False, True],
    ]  # fmt: skip


def test_the_trace_is_a_part_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    assert trace.parts() == {}
    (tmp_path / trace.FILE.parent).mkdir()
    (tmp_path / trace.FILE).touch()
    assert list(trace.parts()) == ["trace"]
