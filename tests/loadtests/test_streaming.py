"""The client's times and its view of faults, against a server with known timing."""

import socket
import sys
import time
from typing import Any

import pytest

from loadtests.streaming import Answer, Client, piece_of_text, sse_data
from loadtests.workload import Call

GAP_MS = 50.0


def send(url: str, prompt: str, *, streamed: bool = True, timeout_s: float = 5.0) -> Answer:
    client = Client(url, api_key="secret", connections=2, timeout_s=timeout_s)
    body = {"messages": [{"role": "user", "content": prompt}], "stream": streamed}
    call = Call("chat_stream" if streamed else "chat", "/v1/chat/completions", body)
    return client.send(call, time.perf_counter())


def test_a_stream_is_timed_piece_by_piece_as_it_comes(server: str) -> None:
    answer = send(server, "hello")

    assert answer.error is None
    assert answer.output_tokens == 4
    assert answer.size == 8
    assert answer.ttft_ms == pytest.approx(GAP_MS, abs=30)
    assert len(answer.gaps_ms) == 3
    assert all(gap == pytest.approx(GAP_MS, abs=30) for gap in answer.gaps_ms)
    assert answer.end_to_end_ms >= 4 * GAP_MS


def test_the_role_chunk_without_text_is_not_the_first_token(server: str) -> None:
    answer = send(server, "hello")

    assert answer.ttft_ms is not None
    assert answer.ttft_ms > GAP_MS * 0.9


def test_keep_alive_comments_are_not_tokens(server: str) -> None:
    answer = send(server, "keep alive")

    assert answer.error is None
    assert len(answer.gaps_ms) == 3


def test_times_count_from_the_planned_arrival(server: str) -> None:
    client = Client(server, api_key=None, connections=1, timeout_s=5)
    call = Call("chat", "/v1/chat/completions", {"messages": []})

    answer = client.send(call, time.perf_counter() - 1.0)

    assert answer.end_to_end_ms >= 1000


def test_a_cut_stream_fails_and_does_not_hang(server: str) -> None:
    answer = send(server, "cut", timeout_s=2)

    assert answer.error is not None
    assert answer.end_to_end_ms < 1000


def test_an_error_inside_a_stream_fails(server: str) -> None:
    assert "engine died" in str(send(server, "break").error)


def test_a_stream_that_hangs_ends_at_the_timeout(server: str) -> None:
    answer = send(server, "hang", timeout_s=0.5)

    assert answer.error == "no whole answer within 0.5 s"
    assert answer.end_to_end_ms < 1000


def test_a_refusal_carries_status_and_code(server: str) -> None:
    answer = send(server, "refuse")

    assert answer.status == 429
    assert "overloaded" in str(answer.error)


def test_an_unstreamed_answer_has_no_time_to_first_token(
    server: str, seen: list[dict[str, Any]]
) -> None:
    answer = send(server, "hello", streamed=False)

    assert (answer.error, answer.ttft_ms, answer.output_tokens) == (None, None, 7)
    assert seen[0]["key"] == "Bearer secret"


def test_a_server_that_is_not_there_is_an_error_not_an_exception() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        answer = send(f"http://127.0.0.1:{unused.getsockname()[1]}", "hello")

    assert answer.status == 0
    assert "refused" in str(answer.error)


def test_data_over_several_lines_is_one_event() -> None:
    lines = [b"event: x", b"data: a", b"data:b", b"", b": comment", b"", b"data: c", b""]

    assert list(sse_data(lines)) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"choices": [{"delta": {"content": "a"}}]}, "a"),
        ({"choices": [{"delta": {"content": None}}]}, ""),
        ({"choices": [{"text": "b"}]}, "b"),
        ({"index": 0, "delta": "c"}, "c"),
        ({"choices": [], "usage": {}}, ""),
        ({"index": 0, "finish_reason": "stop", "result": {}}, ""),
    ],
)
def test_text_is_found_in_every_kind_of_event(event: dict[str, Any], text: str) -> None:
    assert piece_of_text(event) == text


def test_the_client_does_not_patch_sockets() -> None:
    assert "locust" not in sys.modules
