"""The event loop of a server under traffic of all kinds: nothing holds it up."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Running

SECONDS = 3.0
ROUNDS = 3
SOME_MS, MOST_MS = 10, 250
"""Most beats, and all but one: what has the interpreter's lock may itself wait for a core."""
TEXTS = [f"the file number {number} could not be opened" for number in range(32)]
CHAT: dict[str, Any] = {
    "model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 16,
}  # fmt: skip
LIST = {"text": TEXTS, "source_lang": "en", "target_lang": "fr", "max_tokens": 4}

TRAFFIC: list[Callable[[httpx.Client], httpx.Response]] = [
    lambda client: client.post("/v1/chat/completions", json=CHAT),
    lambda client: client.post("/v1/chat/completions", json={**CHAT, "stream": True}),
    lambda client: client.post("/v1/translate", json={"model": "enfr", **LIST}),
    lambda client: client.post("/v1/classify", json={"model": "mood", "text": TEXTS}),
    lambda client: client.post("/v1/generate", json={"prompt": TEXTS, "max_tokens": 4}),
    lambda client: client.post(
        "/v1/files",
        files={"file": ("x.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 20_000)},
        data={"purpose": "fine-tune"},
    ),
    lambda client: client.get("/v1/models"),
    lambda client: client.get("/v1/files"),
    lambda client: client.get("/v1/batches"),
    lambda client: client.get("/v1/adapters"),
    lambda client: client.get("/v1/usage"),
    lambda client: client.get("/metrics"),
]


def beats(server: Running) -> dict[float, float]:
    """Beats of the loop that were at most so many seconds late."""
    families = text_string_to_metric_families(server.client().get("/metrics").text)
    return {
        float(sample.labels["le"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "modiste_event_loop_held_seconds_bucket"
    }


def drive(server: Running) -> set[int]:
    """Traffic of all kinds from four clients; the statuses that they got."""
    end = time.monotonic() + SECONDS

    def ask(first: int) -> set[int]:
        found = set()
        with server.client() as client:
            for act in itertools.islice(itertools.cycle(TRAFFIC), first, None):
                found.add(act(client).status_code)
                if time.monotonic() > end:
                    return found
        raise AssertionError

    with ThreadPoolExecutor(4) as threads:
        return set().union(*threads.map(ask, range(0, len(TRAFFIC), 3)))


def round_of_traffic(server: Running) -> str | None:
    """What shows that the loop was held up during a round; None where it was not."""
    before, told = beats(server), server.log.stat().st_size
    assert drive(server) == {200}
    after = beats(server)

    late = {bound: after[bound] - before[bound] for bound in after}
    all_beats = late[float("inf")]
    assert all_beats >= SECONDS * 5
    for line in server.log.read_bytes()[told:].decode().splitlines():
        if "the event loop was held up" in line:
            return line
    in_time = late[MOST_MS / 1000] >= all_beats - 1 and late[SOME_MS / 1000] >= 0.8 * all_beats
    return None if in_time else str(late)


def test_nothing_holds_the_event_loop_up_under_traffic(server: Running) -> None:
    """A call that blocks does so in each round; a host that steals time does not."""
    held = []
    while found := round_of_traffic(server):
        held.append(found)
        assert len(held) < ROUNDS, held
