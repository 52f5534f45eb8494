"""An engine that stops working, and one that is killed; and where the server's secrets show."""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from adapters.registry import Registry
from tests.engine.ends import alive, complete, in_flight, until, workers
from tests.made import Recipe, add_tiny_base, publish
from tests.serving import Running, start, stop

pytestmark = pytest.mark.slow

PATIENCE_S = 2
KEY, CREDENTIAL = "a-key-that-nobody-may-see", "a-credential-of-a-store"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose watchdog is quick; of its three live versions one was altered, one is lost."""
    home = tmp_path_factory.mktemp("home")
    registry = Registry.open(home)
    base = add_tiny_base(registry)
    for number, name in enumerate(("sound", "altered", "lost")):
        registry.promote(publish(registry, base, Recipe(name, seed=number)).reference)
    shutil.rmtree(registry.find("lost").folder)
    weights = registry.find("altered").folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    process, url = start(
        home,
        MODISTE_WATCHDOG_INTERVAL_S="1", MODISTE_WATCHDOG_PATIENCE_S=str(PATIENCE_S),
        MODISTE_API_KEYS=KEY, AWS_SECRET_ACCESS_KEY=CREDENTIAL,
    )  # fmt: skip
    yield Running(registry, base, url, home / "serve.log", process)
    stop(process)


def engine(server: Running) -> psutil.Process:
    """By vLLM's own lines: a process that was forked has no title of its own."""
    (pid,) = set(re.findall(r"\(EngineCore pid=(\d+)\)", server.log.read_text()))
    return psutil.Process(int(pid))


def health(server: Running, name: str) -> tuple[int, str | None]:
    answer = httpx.get(f"{server.url}/health/{name}")
    return answer.status_code, answer.json().get("error", {}).get("code")


def test_broken_live_versions_are_told_and_the_others_served(watched: Running) -> None:
    assert httpx.get(f"{watched.url}/health/ready").json()["not_served"] == 2
    headers = {"authorization": f"Bearer {KEY}"}
    with watched.client(headers=headers) as client:
        found = {
            name: client.post("/v1/completions", json={"model": name, "prompt": "a"})
            for name in ("sound", "altered", "lost")
        }
    assert found["sound"].json()["model"] == "sound@1"
    for name, why in (("altered", "altered"), ("lost", "no manifest in the store")):
        assert found[name].status_code == 503
        error = found[name].json()["error"]
        assert (error["code"], why in error["message"]) == ("alias_not_served", True)


def test_no_secret_is_in_a_command_line_or_in_the_log(watched: Running) -> None:
    until(lambda: workers(watched.process.pid))
    assert complete(watched.url, 2, key=KEY).tokens == 2
    assert complete(watched.url, 2, key=KEY + "x").code == "invalid_api_key"
    server = psutil.Process(watched.process.pid)
    lines = [" ".join(one.cmdline()) for one in (server, *server.children(recursive=True))]
    assert len(lines) >= 4
    told = "\n".join((*lines, watched.log.read_text()))
    assert (KEY in told, CREDENTIAL in told) == (False, False)


def test_an_engine_that_hangs_fails_both_probes_until_it_works_again(watched: Running) -> None:
    assert health(watched, "live") == (200, None)
    process = engine(watched)
    process.suspend()
    try:
        until(lambda: health(watched, "live") == (503, "engine_stuck"))
        assert health(watched, "ready") == (503, "engine_stuck")
    finally:
        process.resume()
    until(lambda: health(watched, "ready") == (200, None))
    assert health(watched, "live") == (200, None)


def test_an_engine_that_dies_is_told_to_callers_and_ends_the_server(watched: Running) -> None:
    (worker,) = until(lambda: workers(watched.process.pid))
    # those that go on whatever the model says
    asked = [(route, stream) for route in ("completions", "chat/completions")
             for stream in (True, False)]  # fmt: skip
    with ThreadPoolExecutor(len(asked)) as threads:
        running = [
            threads.submit(complete, watched.url, 450, stream=stream, route=route, key=KEY)
            for route, stream in asked
        ]
        until(lambda: in_flight(watched.url) == len(asked))
        engine(watched).kill()
        told = {one.result().code for one in running}
    assert told == {"engine_dead"}
    assert watched.process.wait(20) == 1
    last = [line for line in watched.log.read_text().splitlines() if line.startswith("error: ")]
    assert last[-1:] == ["error: the server ended by itself: the engine was killed by signal 9"]
    until(lambda: not alive(worker))
