"""Batches of servers that are killed, told to end, or stopped for a while."""

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai

from adapters.registry import Registry
from service.batches.parts import Parts
from service.batches.queue import Batches
from service.files import Files
from tests.service.batches.asked import create, line, lines_of, processes, until

LINES, KILLS = 800, 3


def slow(client: openai.OpenAI, lines: int = LINES) -> str:
    """A batch; its line N says `N` after a while."""
    id_: str = create(client, b"".join(line(f"id-{n}", f"slow {n}") for n in range(lines))).id
    return id_


def until_more(client: openai.OpenAI, id_: str) -> None:
    before = client.batches.retrieve(id_).request_counts.completed  # type: ignore[union-attr]
    while client.batches.retrieve(id_).request_counts.completed == before:  # type: ignore[union-attr]
        time.sleep(0.02)


def asked(log: Path) -> Counter[str]:
    """How often each line was."""
    return Counter(said.split()[1] for said in log.read_text().splitlines())


def counted(registry: Registry, id_: str) -> set[str]:
    """The lines that are in parts, as they are asked."""
    files = Files(registry.database, registry.home)
    batches = Batches(registry.database)
    numbers = Parts(files.contents, files.scratch).numbers(batches.parts(id_))
    row = batches.find(id_, "ours")
    assert len(numbers) == row.completed + row.failed
    return {str(number - 1) for number in numbers}


def assert_whole(client: openai.OpenAI, batch: Any) -> None:
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": LINES, "completed": LINES, "failed": 0}
    lines = lines_of(client, batch.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"id-{n}" for n in range(LINES)]
    texts = [one["response"]["body"]["text"] for one in lines]
    assert texts == [str(n) for n in range(LINES)]


def test_a_server_that_is_killed_repeats_no_counted_line(tmp_path: Path) -> None:
    with processes(tmp_path) as (registry, key, (server,)):
        client = server.client(key)
        batch_id, seen = slow(client), list[tuple[set[str], Counter[str]]]()
        for _ in range(KILLS):
            until_more(client, batch_id)
            server.signal(signal.SIGKILL)
            server.process.wait()
            seen.append((counted(registry, batch_id), asked(server.log)))
            server.start()
        assert_whole(client, until(client, batch_id))
        times = asked(server.log)
    assert len(times) == LINES
    sizes = [len(lines) for lines, _ in seen]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < LINES
    for lines, before in seen:
        assert {n: times[n] for n in lines} == {n: before[n] for n in lines}


def test_a_server_that_is_told_to_end_keeps_answers_and_nothing_else(tmp_path: Path) -> None:
    with processes(tmp_path) as (registry, key, (server,)):
        client = server.client(key)
        batch_id = slow(client)
        until_more(client, batch_id)
        time.sleep(0.4)  # some answers are in memory
        server.signal(signal.SIGTERM)
        server.process.wait(20)
        kept, times = counted(registry, batch_id), asked(server.log)
        assert len(times) <= len(kept) + 8  # what was in flight is all that is asked again
        row = Batches(registry.database).find(batch_id, "ours")
        assert (row.server, row.lost) == (None, 0)
        server.start()
        assert_whole(client, until(client, batch_id))
        again = asked(server.log)
        assert {n: again[n] for n in kept} == dict.fromkeys(kept, 1)


def test_a_server_that_was_gone_for_a_while_changes_nothing(tmp_path: Path) -> None:
    with processes(tmp_path, 2) as (_, key, (first, second)):
        client = second.client(key)
        batch_id = slow(client)
        until_more(client, batch_id)
        at_it, other = (first, second) if first.log.exists() else (second, first)
        client = other.client(key)
        at_it.signal(signal.SIGSTOP)
        until_more(client, batch_id)
        at_it.signal(signal.SIGCONT)
        assert_whole(client, until(client, batch_id))
