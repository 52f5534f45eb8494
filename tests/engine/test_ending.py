"""The end of a real server: its worker ends too, and usage is in the database."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from adapters.registry import Registry
from bench.servers import free_port, session_processes
from service.usage import Usage
from tests.engine.ends import Answer, alive, complete, in_flight, until, workers
from tests.made import add_tiny_base
from tests.serving import Running, start, stop


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_base(Registry.open(tmp_path))
    return tmp_path


def used(home: Path) -> dict[tuple[str, str], int]:
    today = datetime.now(UTC).date()
    sums = Usage(Registry.open(home).database).sums(
        today - timedelta(days=1), today, ["model", "route"]
    )
    return {(s.group["model"], s.group["route"]): s.counts.completion_tokens for s in sums}


def test_sigterm_lets_requests_finish_ends_the_worker_and_brings_in_the_usage(home: Path) -> None:
    process, url = start(home)
    try:
        (first,) = until(lambda: workers(process.pid))
        assert first.nice() == 10
        first.kill()
        (second,) = until(lambda: [w for w in workers(process.pid) if w.pid != first.pid])
        with ThreadPoolExecutor(2) as threads:
            running = [
                threads.submit(complete, url, 400, stream=stream) for stream in (True, False)
            ]
            until(lambda: in_flight(url) == 2)
            process.send_signal(signal.SIGTERM)
            refused = until(lambda: complete(url, 3).code)
            health = [httpx.get(f"{url}/health/{name}").status_code for name in ("ready", "live")]
            answers = [one.result() for one in running]
        code = process.wait(60)
    finally:
        stop(process)
    assert (refused, health) == ("shutting_down", [503, 200])
    assert [(answer.code, answer.tokens) for answer in answers] == [("", 400), ("", 400)]
    assert code == 0
    assert not alive(second)
    assert used(home) == {("tiny", "/v1/completions"): 800}
    log = (home / "serve.log").read_text()
    assert log.count("the worker ended with -9") == 1
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_under_load_no_request_that_began_before_the_signal_is_broken(
    home: Path, number: signal.Signals
) -> None:
    process, url = start(home)
    over, signalled = threading.Event(), float("inf")
    seen: list[tuple[float, Answer]] = []

    def load(dice: random.Random) -> None:
        while not over.is_set():
            began = time.monotonic()
            tokens, stream = dice.choice((1, 20, 200)), dice.random() < 0.5
            route = dice.choice(("completions", "chat/completions", "generate"))
            seen.append((began, complete(url, tokens, stream=stream, route=route)))

    threads = [threading.Thread(target=load, args=(random.Random(n),)) for n in range(24)]
    for thread in threads:
        thread.start()
    until(lambda: len(seen) > 100)
    signalled = time.monotonic()
    # as a terminal does it: Ctrl-C is for the engine's processes too
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    code = process.wait(60)
    over.set()
    for thread in threads:
        thread.join()
    before = Counter(answer.code for began, answer in seen if began < signalled)
    after = Counter(answer.code for began, answer in seen if began >= signalled)
    # what was sent just before may not have been read yet
    assert {answer.code for began, answer in seen if began < signalled - 1} == {""}
    assert before.keys() <= {"", "shutting_down"}
    assert after["shutting_down"] > 0
    assert after.keys() <= {"", "shutting_down", "ConnectError", "ReadError", "RemoteProtocolError"}
    assert code == 0


@pytest.mark.slow
def test_a_second_signal_ends_the_server_and_its_engine_at_once(home: Path) -> None:
    process, url = start(home)
    family = psutil.Process(process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(complete, url, 480)
        until(lambda: in_flight(url) == 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: complete(url, 1).code == "shutting_down")
        process.send_signal(signal.SIGTERM)  # passed on a second time by whoever started it
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        code = process.wait(3)
        assert running.result().code in ("RemoteProtocolError", "ReadError")
    assert code == 128 + signal.SIGTERM
    until(lambda: not any(map(alive, family)))


@pytest.mark.slow
def test_what_takes_longer_than_the_grace_is_told_so(home: Path) -> None:
    process, url = start(home, MODISTE_SHUTDOWN_GRACE_S="1")
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(complete, url, 500, stream=stream) for stream in (True, False)]
        until(lambda: in_flight(url) == 2)
        process.send_signal(signal.SIGTERM)
        assert {one.result().code for one in running} == {"engine_dead"}
    assert process.wait(15) == 0


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [2, 4, 6, 8, 11, 14])
def test_a_signal_while_the_server_starts_ends_it_with_all_that_it_began(
    home: Path, after_s: int
) -> None:
    log = (home / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(free_port())],
        env={**os.environ, "MODISTE_HOME": str(home)}, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(after_s)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    assert time.monotonic() - began < 15  # a step of an import can't be interrupted
    time.sleep(1)
    assert session_processes(process.pid) == []
    said = (home / "serve.log").read_text()
    if code == -signal.SIGTERM:  # before the command had read its own modules
        assert said == ""
    elif code == 0:  # when it was ready
        assert "Application startup complete" in said
    else:
        assert code == 143
        assert said.endswith("SIGTERM came before the server was ready: ends at once\n")
    assert "Traceback" not in said


@pytest.mark.slow
def test_kill_9_takes_the_worker_along(home: Path) -> None:
    process, _ = start(home)
    (worker,) = until(lambda: workers(process.pid))
    until(lambda: "waits for jobs" in (home / "serve.log").read_text())
    os.killpg(process.pid, signal.SIGKILL)  # the worker is in a session of its own
    process.wait()
    until(lambda: not alive(worker))


def test_usage_is_told_while_the_server_runs(server: Running) -> None:
    before = _tokens(server)
    server.openai().completions.create(model="one", prompt="save the", max_tokens=4)
    assert until(lambda: _tokens(server) > before)


def _tokens(server: Running) -> int:
    with server.client() as client:
        answer = client.get("/v1/usage", params={"group_by": "model,route", "days": 2}).json()
    (bucket,) = answer["data"]
    return sum(
        one["output_tokens"]
        for one in bucket["results"]
        if (one["model"], one["route"]) == ("one@1", "/v1/completions")
    )
