"""Every part of the server knows of its end before the engine drains, and it comes in time."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.ending import Ending, before_shutdown


class Client:
    """An engine's client that notes what was told before it drained."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.told: list[tuple[str, int]] = []
        self.waiters_told_in: list[int] = []
        """The threads in which those who still wait were told."""

    def shutdown(self, timeout: float | None = None) -> None:
        begun = self.ending is not None and self.ending.begun
        self.told.append((f"begun {begun}, drained within {timeout}", threading.get_ident()))


def ended(serve: Callable[[Client, Ending], object], *, inside: int = 0) -> Client:
    """A client after what `serve` did in an event loop, with so many requests at work."""
    client = Client()

    async def main() -> None:
        client.ending = Ending()
        before_shutdown(
            client, client.ending, lambda: client.waiters_told_in.append(threading.get_ident())
        )
        for _ in range(inside):
            client.ending.enter()
        await serve(client, client.ending)  # type: ignore[misc]

    asyncio.run(main())
    return client


def test_the_end_begins_before_the_engine_drains_and_is_told_in_the_event_loop() -> None:
    loop_thread = 0

    async def serve(client: Client, ending: Ending) -> None:
        nonlocal loop_thread
        loop_thread = threading.get_ident()
        ending.tell.append(lambda: client.told.append(("told", threading.get_ident())))
        await asyncio.to_thread(client.shutdown, timeout=30.0)
        await ending.wait()
        await asyncio.sleep(0)

    client = ended(serve)
    assert {words for words, _ in client.told} == {"told", "begun True, drained within 30.0"}
    assert dict(client.told)["told"] == loop_thread
    assert client.waiters_told_in == [loop_thread]
    client.shutdown()  # once more, as when the client is collected
    assert client.told[-1][0] == "begun True, drained within None"


def test_the_engine_goes_on_until_the_last_request_has_left() -> None:
    async def serve(client: Client, ending: Ending) -> None:
        stopping = asyncio.create_task(asyncio.to_thread(client.shutdown, timeout=30.0))
        await ending.wait()
        ending.leave()
        await asyncio.sleep(0.1)
        assert client.told == []
        ending.leave()
        await stopping

    client = ended(serve, inside=2)
    assert client.told[0][0] == "begun True, drained within 29.9"
    assert client.ending is not None
    assert client.ending.outcome.asked


def test_requests_that_take_longer_than_the_grace_don_t_hold_up_the_engine_s_end() -> None:
    async def serve(client: Client, ending: Ending) -> None:
        await asyncio.to_thread(client.shutdown, timeout=0.2)

    began = time.monotonic()
    client = ended(serve, inside=1)
    assert client.told[0][0] == "begun True, drained within 0.0"
    assert 0.2 <= time.monotonic() - began < 2


def test_an_engine_shut_down_by_its_own_server_was_not_asked_to_end() -> None:
    async def serve(client: Client, ending: Ending) -> None:
        client.shutdown(timeout=30.0)  # in the event loop, which can't wait for requests
        ending.begin("too late to be the reason")

    client = ended(serve, inside=1)
    assert client.told[0][0] == "begun True, drained within 30.0"
    assert client.ending is not None
    assert (client.ending.outcome.asked, client.ending.outcome.failure) == (False, "")


SERVER = """
import asyncio, multiprocessing, sys, time
from types import SimpleNamespace
from service import ending as parts

parts.CLOSE_S, parts.LAST_S, parts.ONE_SIGNAL_S = 0.1, float(sys.argv[1]), 0.0

async def main():
    end = parts.Ending()
    server = SimpleNamespace(should_exit=False, force_exit=False)
    parts.end_in_time(SimpleNamespace(state=SimpleNamespace(server=server)), end, 0.2)
    engine = multiprocessing.Process(target=time.sleep, args=(60,))
    engine.start()
    end.begin(sys.argv[2])
    await asyncio.sleep(0.1)
    print(engine.pid, server.should_exit, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def run_server(last_s: float, failure: str = "") -> tuple["subprocess.Popen[str]", int, str]:
    """A server that doesn't end by itself; its engine's process, and whether HTTP is to end."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(last_s), failure], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    engine, exits = server.stdout.readline().split()
    return server, int(engine), exits


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_server_and_engine_at_once(number: int, code: int) -> None:
    server, engine, exits = run_server(60)
    server.send_signal(number)
    assert server.wait(5) == code
    assert is_gone(engine)
    assert exits == "False"


def test_a_server_that_hangs_as_it_ends_is_ended_with_its_engine() -> None:
    server, engine, exits = run_server(0.2, "the engine was killed")
    assert server.wait(5) == 1
    assert is_gone(engine)
    assert exits == "True"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_server_is_ready_ends_it_at_once_and_says_so(
    number: signal.Signals,
) -> None:
    starting = (
        "import time; from service.ending import end_at_once_until_ready as e; e(); "
        "print('on', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", starting], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=5)
    assert process.returncode == 128 + number
    assert said == f"{number.name} came before the server was ready: ends at once\n"
