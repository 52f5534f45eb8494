"""Callers who vanish in the midst of their answers: how soon is the engine free again?

In rounds, more long answers are asked for at once than the engine has places, streamed and not, of
one or several sequences; each caller goes away at a random moment, before or after its first token.
After the last one has gone, the server's own count must fall to nothing, and as many short requests
as there are places must be answered, a second later at most than by an idle engine: those show that
the engine has let go, whatever is counted.
"""

import asyncio
import json
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.servers import Server, ServerError, free_port, running
from bench.tiny import launch
from tests.made import Recipe, add_tiny_base, publish

CUTS, CUTS_SHORT = 500, 150
AT_ONCE, PLACES = 50, 16
LAST_CUT_S = 1.5
LONG = 450
"""Tokens: more than the engine writes before the last cut."""
FREE_S, LIMIT_S = 1.0, 30.0
FLAGS = ["--", "--max-num-seqs", str(PLACES)]
COUNTS = ("modiste_running_sequences", "modiste_queued_requests")


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Cut streams until there were enough."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    registry.promote(publish(registry, add_tiny_base(registry), Recipe("one")).reference)
    start = launch("vanish", registry.home.root, free_port(), {"worker_jobs": 0}, FLAGS)
    dice = random.Random(5)  # noqa: S311  # when who goes
    wanted, cut, ended = (CUTS_SHORT if short else CUTS), 0, 0
    counted: list[float] = []
    answered: list[float] = []
    with running([start], folder / "logs") as (server,):
        asyncio.run(_short_ones(server))  # warm
        alone = statistics.median(asyncio.run(_short_ones(server)) for _ in range(5))
        while cut < wanted:
            gone = asyncio.run(_round(server, dice))
            cut, ended = cut + sum(gone), ended + gone.count(False)
            free_s, answered_s = asyncio.run(_freed(server))
            counted.append(free_s)
            answered.append(answered_s - alone)
    report.add(at_least("answers whose callers vanished", cut, wanted))
    what = f"to a count of nothing after the last of {AT_ONCE}, the slowest"
    report.add(at_most(what, max(counted), FREE_S, "s"))
    what = f"later answers of {PLACES} others, one for each place, than on an idle engine"
    report.add(at_most(what, max(answered), FREE_S, "s"))
    report.measurements.append(
        {
            "part": "vanish", "rounds": len(counted), "cut": cut, "ended before": ended,
            "median s, counted": round(statistics.median(counted), 3),
            "median s, answered later": round(statistics.median(answered), 3),
            "answered on an idle engine, s": round(alone, 3),
        }
    )  # fmt: skip


def _bodies(dice: random.Random) -> dict[str, Any]:
    model = dice.choice(("tiny", "one"))
    text = f"{dice.random()} tell me more"
    chat: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": text}], "max_tokens": LONG,
        "ignore_eos": True,
    }  # fmt: skip
    return dice.choice([chat | {"stream": True}, chat | {"stream": True, "n": 2}, chat])


async def _round(server: Server, dice: random.Random) -> list[bool]:
    """For each caller: it went before its answer had ended."""
    moments = [dice.uniform(0.01, LAST_CUT_S) for _ in range(AT_ONCE)]
    return await asyncio.gather(*(_vanish(server.port, _bodies(dice), at_s) for at_s in moments))


async def _vanish(port: int, body: dict[str, Any], after_s: float) -> bool:
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + payload)
        async with asyncio.timeout(after_s):
            await reader.read()  # to its end
            return False
    except TimeoutError:
        return True
    finally:
        writer.transport.abort()


async def _freed(server: Server) -> tuple[float, float]:
    """Seconds until nothing is counted, and until the short ones were answered, of one moment."""
    return await asyncio.gather(_idle(server, time.perf_counter()), _short_ones(server))


async def _idle(server: Server, began: float) -> float:
    """Raises ServerError: it never was."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        while time.perf_counter() - began < LIMIT_S:
            lines = (await client.get("/metrics")).text.splitlines()
            left = sum(float(line.split()[1]) for line in lines if line.startswith(COUNTS))
            if not left:
                return time.perf_counter() - began
            await asyncio.sleep(0.05)
    raise ServerError(f"requests are counted {LIMIT_S:g} s after their callers have gone")


async def _short_ones(server: Server) -> float:
    """Seconds to the last answer of as many as there are places, at once. Raises ServerError."""
    began = time.perf_counter()
    body = {"model": "one", "prompt": "a", "max_tokens": 1}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json=body) for _ in range(PLACES))
        )
    if failed := [answer.text for answer in answers if answer.status_code != 200]:
        raise ServerError(f"{len(failed)} of {PLACES} short requests failed: {failed[0]}")
    return time.perf_counter() - began
