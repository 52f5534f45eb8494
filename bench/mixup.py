"""No mix-up: many adapters, few slots, and aliases that move all the time.

64 adapters with two versions each share 8 slots; 16 of them are live and are promoted and rolled
back without pause, while new versions are published; the others are loaded and unloaded as they
are asked for. Every answer is compared, token by token, with what that version answers alone.
"""

import asyncio
import itertools
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx

from adapters.registry import Registry
from bench import truth
from bench.harness import Report, at_least, at_most
from bench.servers import free_port, running
from bench.tiny import launch
from tests.made import Recipe, add_tiny_base, publish

ADAPTERS, LIVE, SLOTS, PLACES = 64, 16, 8, 40
AT_ONCE, ROUNDS, ROUNDS_SHORT = 200, 12, 11
FAILED_SHOWN = 5


@dataclass
class Tally:
    """What came of the answers."""

    right: int = 0
    ties: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    versions: set[str] = field(default_factory=set)

    @property
    def answers(self) -> int:
        return self.right + self.ties + len(self.wrong)


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Ask and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    base = add_tiny_base(registry)
    recipes = {
        f"a-{number}@{version}": Recipe(f"a-{number}", seed=1000 * version + number)
        for version in (1, 2, 3)
        for number in range(ADAPTERS if version < 3 else LIVE)
    }
    print("what each version answers alone …", file=sys.stderr)
    alone = truth.answers(base, recipes.values())
    expected = {reference: alone[truth.key(recipe)] for reference, recipe in recipes.items()}
    expected["tiny"] = alone[""]
    later = {reference: recipe for reference, recipe in recipes.items() if reference.endswith("@3")}
    digests: dict[str, str] = {"tiny": ""}
    for reference, recipe in recipes.items():
        if reference not in later:
            digests[reference] = publish(registry, base, recipe).digest
    for number in range(LIVE):
        registry.promote(f"a-{number}@1")
    settings = {"max_loras": SLOTS, "max_resident_versions": PLACES, "max_lora_rank": 8}
    start = launch("mixup", registry.home.root, free_port(), settings)
    rounds = ROUNDS_SHORT if short else ROUNDS
    with running([start], folder / "logs") as (server,):
        url = f"http://127.0.0.1:{server.port}"
        with churn(url, registry, base, later, digests) as moves:
            started = time.perf_counter()
            tally = asyncio.run(_ask(url, expected, digests, rounds))
            seconds = time.perf_counter() - started
        metrics = httpx.get(f"{url}/metrics").text
    evictions = _value(metrics, "modiste_version_evictions_total")
    for line in tally.wrong[:FAILED_SHOWN]:
        print(line, file=sys.stderr)
    what = f"{tally.answers} answers of {ADAPTERS} adapters over {SLOTS} slots under churn"
    report.add(at_most(f"wrong ones of {what}", len(tally.wrong), 0))
    report.add(at_least("answers compared", tally.answers, 2000))
    report.add(at_most("requests that failed", sum(tally.failed.values()), 0))
    report.add(at_least("versions unloaded meanwhile", evictions, 100))
    report.add(at_least("aliases moved meanwhile", moves["promote"] + moves["rollback"], 50))
    report.measurements.append(
        {
            "part": "mixup", "answers": tally.answers, "equal token by token": tally.right,
            f"parting at a tie (under {truth.TIE_NATS} nats)": tally.ties,
            "versions that answered": len(tally.versions), "unloaded": evictions, **moves,
            "requests/s": round(tally.answers / seconds, 1),
            **{f"failed: {why}": count for why, count in tally.failed.items()},
        }
    )  # fmt: skip


@contextmanager
def churn(
    url: str, registry: Registry, base: Any, later: dict[str, Recipe], digests: dict[str, str]
) -> Iterator[Counter[str]]:
    """Promote, roll back and publish until the body ends."""
    done, moves = Event(), Counter[str]()
    waiting = iter(later.items())

    def work() -> None:
        dice = random.Random(1)  # noqa: S311  # what to do
        with httpx.Client(base_url=url, timeout=120) as client:
            while not done.is_set():
                name = f"a-{dice.randrange(LIVE)}"
                if (new := next(waiting, None)) is not None:
                    digests[new[0]] = publish(registry, base, new[1]).digest
                    moves["publish"] += 1
                newest = registry.versions(name)[-1].number
                version = {"version": dice.randint(1, newest)}
                answer = client.post(f"/v1/adapters/{name}/promote", json=version)
                moves["promote" if answer.is_success else f"promote {answer.status_code}"] += 1
                if dice.random() < 0.5:
                    answer = client.post(f"/v1/adapters/{name}/rollback", json={})
                    if answer.is_success:  # else it had nowhere to go back to
                        moves["rollback"] += 1

    thread = Thread(target=work)
    thread.start()
    try:
        yield moves
    finally:
        done.set()
        thread.join()


async def _ask(
    url: str, expected: dict[str, dict[str, truth.Alone]], digests: dict[str, str], rounds: int
) -> Tally:
    """Rounds of requests all at once: by version, by alias, and for the base."""
    dice, tally = random.Random(2), Tally()  # noqa: S311  # what to ask
    by_version = [f"a-{n}@{v}" for n, v in itertools.product(range(ADAPTERS), (1, 2))]
    by_alias = [f"a-{n}" for n in range(LIVE)]
    # a connection idle for longer may be closed by the server just when it is used again
    limits = httpx.Limits(max_connections=AT_ONCE, keepalive_expiry=1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        for number in range(rounds):
            asked = dice.sample(by_version, AT_ONCE // 2)
            asked += dice.choices(by_alias, k=AT_ONCE // 2 - 10) + ["tiny"] * 10
            prompts = dice.choices(truth.PROMPTS, k=AT_ONCE)
            pairs = zip(asked, prompts, strict=True)
            answers = await asyncio.gather(*(_answer(client, *pair) for pair in pairs))
            for name, prompt, answer in zip(asked, prompts, answers, strict=True):
                _compare(tally, (name, prompt), answer, expected, digests)
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return tally


async def _answer(client: httpx.AsyncClient, model: str, prompt: str) -> httpx.Response:
    body = {
        "model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
        "max_tokens": truth.TOKENS, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    return await client.post("/v1/chat/completions", json=body)


def _compare(
    tally: Tally,
    asked: tuple[str, str],
    answer: httpx.Response,
    expected: dict[str, dict[str, truth.Alone]],
    digests: dict[str, str],
) -> None:
    name, prompt = asked
    if not answer.is_success:
        tally.failed[answer.json()["error"]["code"]] += 1
        return
    body = answer.json()
    model, token_ids = body["model"], tuple(body["choices"][0]["token_ids"])
    if (model if "@" in name or name == "tiny" else model.partition("@")[0]) != name:
        tally.wrong.append(f"{name} was answered by {model}")
        return
    if digests[model] not in answer.headers["x-modiste-receipt"]:
        tally.wrong.append(f"{model}: another receipt: {answer.headers['x-modiste-receipt']}")
        return
    tally.versions.add(model)
    margin = expected[model][prompt].parts_from(token_ids)
    others = [m for m, said in expected.items() if said[prompt].token_ids == token_ids]
    if margin is None:
        tally.right += 1
    elif margin <= truth.TIE_NATS and not others:
        tally.ties += 1
    else:
        tally.wrong.append(f"{model} {prompt!r}: {token_ids}, as {others or 'nobody'} answers")


def _value(metrics: str, name: str) -> float:
    return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(name))
