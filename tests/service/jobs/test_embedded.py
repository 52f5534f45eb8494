"""The server's own worker: a real child process, in the server's event loop, without its engine."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from adapters.registry import Registry
from service.jobs import embedded
from service.jobs.embedded import EmbeddedWorker
from service.settings import Settings

WAIT_S = 30
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
Pids = Callable[[], list[int]]


@pytest.fixture
def pids(tmp_path: Path) -> Pids:
    """Processes that a `script` was, in their order."""
    place = tmp_path / "pids"
    return lambda: [int(line) for line in place.read_text().split()] if place.exists() else []


def script(tmp_path: Path, more: str = "") -> list[str]:
    """A child that tells its process and then waits."""
    text = f"""
        import os, time
        {more}
        with open({str(tmp_path / "pids")!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        time.sleep(600)
    """
    return [sys.executable, "-c", textwrap.dedent(text)]


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def first_to_die(pid: int) -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip()


def keep(
    command: list[str], work: Callable[[EmbeddedWorker], Awaitable[None]], grace_s: float = 10.0
) -> None:
    """Do something while a worker is kept, then cancel it as the end of the server does."""

    async def serve() -> None:
        worker, ready = EmbeddedWorker(command, os.environ, grace_s), asyncio.Event()
        ready.set()
        task = asyncio.create_task(worker.run(ready))
        try:
            await work(worker)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    uvloop.run(serve())


def test_it_waits_for_the_server_and_stands_back(tmp_path: Path, pids: Pids) -> None:
    async def serve() -> None:
        ready = asyncio.Event()
        worker = EmbeddedWorker(script(tmp_path), os.environ, 10)
        task = asyncio.create_task(worker.run(ready))
        await asyncio.sleep(0.5)
        assert pids() == []
        ready.set()
        await until(pids)
        child = psutil.Process(pids()[0])
        assert child.nice() == 10
        assert first_to_die(child.pid) == "500"
        assert os.getsid(child.pid) == child.pid
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not alive(child.pid)

    uvloop.run(serve())


def test_one_that_dies_is_started_again_after_growing_pauses(
    tmp_path: Path, pids: Pids, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(embedded, "LONGEST_PAUSE_S", 0.3)

    async def work(_worker: EmbeddedWorker) -> None:
        for count in range(1, 5):
            await until(lambda: len(pids()) == count)  # noqa: B023 - waited for at once
            os.kill(pids()[-1], signal.SIGKILL)
        await until(lambda: len(pids()) == 5)

    keep(script(tmp_path), work)
    told = [record.message for record in caplog.records if record.name == "modiste.worker"]
    assert told == [
        f"the worker ended with -9; it is started again in {pause:g} s"
        for pause in (0.1, 0.2, 0.3, 0.3)
    ]
    assert not any(map(alive, pids()))


def test_one_that_lived_long_is_started_again_soon(
    tmp_path: Path, pids: Pids, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(embedded, "SOUND_S", 0.0)

    async def work(_worker: EmbeddedWorker) -> None:
        for count in range(1, 4):
            await until(lambda: len(pids()) == count)  # noqa: B023 - waited for at once
            os.kill(pids()[-1], signal.SIGTERM)

    keep(script(tmp_path), work)
    assert caplog.text.count("ended with -15; it is started again in 0.1 s") >= 2


def test_one_that_can_not_be_started_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(_worker: EmbeddedWorker) -> None:
        await until(lambda: "could not be started: No such file" in caplog.text)

    keep(["/nowhere/python"], work)


def test_it_ends_when_it_is_told_before_the_server_does(tmp_path: Path, pids: Pids) -> None:
    async def work(worker: EmbeddedWorker) -> None:
        await until(pids)
        worker.end()
        worker.end()
        await until(lambda: not alive(pids()[0]))
        await asyncio.sleep(0.1)
        assert len(pids()) == 1

    keep(script(tmp_path), work)


@pytest.mark.parametrize("told", [False, True])
def test_a_stubborn_one_is_killed_after_the_grace(
    tmp_path: Path, pids: Pids, caplog: pytest.LogCaptureFixture, told: bool
) -> None:
    async def work(worker: EmbeddedWorker) -> None:
        await until(pids)
        if told:  # and the grace counts from here
            worker.end()
            await asyncio.sleep(0.4)

    began = time.monotonic()
    keep(script(tmp_path, STUBBORN), work, grace_s=0.5)
    assert time.monotonic() - began < WAIT_S
    assert not alive(pids()[0])
    assert "did not end within 0.5 s" in caplog.text


def test_a_pause_ends_with_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "FIRST_PAUSE_S", 600.0)

    async def work(_worker: EmbeddedWorker) -> None:
        await asyncio.sleep(1)

    began = time.monotonic()
    keep([sys.executable, "-c", ""], work)
    assert time.monotonic() - began < WAIT_S


@pytest.fixture
def server(tmp_path: Path, database: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that keeps the real worker as the server does, and nothing else."""
    Registry.open(tmp_path)
    text = f"""
        import asyncio, os, uvloop
        from pathlib import Path
        from service.jobs.embedded import EmbeddedWorker
        from service.settings import Settings

        async def serve():
            ready = asyncio.Event()
            ready.set()
            await EmbeddedWorker.of(Settings(), Path({str(tmp_path)!r}), os.environ).run(ready)

        uvloop.run(serve())
    """
    log = (tmp_path / "log").open("wb")
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stderr=log) as process:
        yield process
        process.kill()


def test_the_real_one_ends_when_its_server_is_killed(
    tmp_path: Path, server: "subprocess.Popen[bytes]"
) -> None:
    log = tmp_path / "log"
    asyncio.run(until(lambda: b"waits for jobs" in log.read_bytes()))
    (worker,) = psutil.Process(server.pid).children()
    assert worker.nice() == 10
    server.kill()
    server.wait()
    asyncio.run(until(lambda: not alive(worker.pid)))


def test_one_whose_server_is_gone_already_does_not_begin(tmp_path: Path) -> None:
    command = ["-m", "service.jobs.worker", f"--home={tmp_path}", "--parent=1"]
    done = subprocess.run([sys.executable, *command], capture_output=True, timeout=60, check=True)
    assert b"waits for jobs" not in done.stderr


def test_it_finds_what_the_server_found(tmp_path: Path) -> None:
    settings = Settings(
        database_url="postgresql://ann:secret@db/modiste", files_url="s3://files/here",
        worker_jobs=3, log_level="warning", shutdown_grace_s=0,
    )  # fmt: skip
    worker = EmbeddedWorker.of(settings, tmp_path, {"MODISTE_FILES_URL": "s3://old", "A": "1"})
    line = " ".join(worker._command)
    assert (
        f"--home {tmp_path} --jobs 3 --log-level warning --log-format text --grace-s 1.0 --parent"
        in line
    )
    assert "secret" not in line
    assert worker._environment["MODISTE_DATABASE_URL"] == "postgresql://ann:secret@db/modiste"
    assert worker._environment["MODISTE_FILES_URL"] == "s3://files/here"
    assert worker._environment["A"] == "1"
    assert "MODISTE_STORE_URL" not in worker._environment
