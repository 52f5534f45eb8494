"""kill -9 at random points of publications, promotions and collections.

A child process, forked so that it starts at once, works on a home folder until it is killed;
then the parent looks at what is there.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from adapters.errors import AdapterError
from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from tests.adapters.parcels import draft, parcel

KILLS, KILLS_SHORT = 100, 25
LONGEST_S = 0.15
PARCELS = 12
ADAPTERS = ("one", "two")


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Kill and look, many times on the same home."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parcels = [parcel(folder / f"parcel-{number}", number + 1) for number in range(PARCELS)]
    home = folder / "home"
    dice = random.Random(0)  # noqa: S311  # when to kill
    kills = KILLS_SHORT if short else KILLS
    during: Counter[str] = Counter()
    unsound: list[str] = []
    Registry.open(home)
    for number in range(kills):
        during[_killed_at(home, parcels, dice.uniform(0, LONGEST_S), seed=number)] += 1
        unsound += _unsound(Registry.open(home))
        print(f"\rkill {number + 1} of {kills}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    registry = Registry.open(home)
    for left in registry.store.staging.iterdir():
        os.utime(left, (0, 0))  # as if found later
    registry.collect(keep=0, older_than_days=0)
    unsound += _unsound(registry)
    for line in unsound[:10]:
        print(line, file=sys.stderr)
    inside = sum(count for work, count in during.items() if work != "between")
    report.add(at_most(f"listed versions or aliases unsound after {kills} kills", len(unsound), 0))
    remaining = len(list(registry.store.staging.iterdir()))
    report.add(at_most("folders of killed publications left by a collection", remaining, 0))
    report.add(at_least("share of the kills inside an operation", inside / kills, 0.5))
    report.measurements.append(
        {"part": "crash", **{f"killed in {work}": count for work, count in sorted(during.items())}}
    )


def _killed_at(home: Path, parcels: list[Path], after_s: float, seed: int) -> str:
    """Fork a child that works, kill it, and say what it was doing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            _work(home, parcels, write, seed)
        finally:
            os._exit(1)
    os.close(write)
    os.read(read, 1)  # it has opened the home
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as told:
        last = (told.read() or " ")[-1]
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the child ended by itself")
    return {"p": "publish", "m": "promote", "g": "gc"}.get(last, "between")


def _work(home: Path, parcels: list[Path], told: int, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311  # what to do
    registry = Registry.open(home)
    os.write(told, b".")
    while True:
        name, chosen = dice.choice(ADAPTERS), dice.choice(parcels)
        os.write(told, b"p")
        version = registry.publish(chosen, draft(chosen, name))
        os.write(told, b"m")
        try:
            registry.promote(version.reference, dice.choice(("production", "staging")))
        except AdapterError as error:
            print(f"promotion refused: {error}", file=sys.stderr)
        os.write(told, b"g")
        registry.collect(keep=dice.randint(0, 3), older_than_days=0)
        os.write(told, b".")


def _unsound(registry: Registry) -> list[str]:
    """Versions that are offered and don't verify, and aliases that point at none."""
    found: list[str] = []
    for record in registry.adapters():
        ready = set()
        try:
            versions = registry.versions(record.name)
        except AdapterError as error:
            found.append(f"{record.name} can't be listed: {error}")
            continue
        for version in versions:
            if version.state != "ready":
                continue
            ready.add(version.number)
            try:
                registry.store.verify(version.manifest)
            except AdapterError as error:
                found.append(f"{version.reference}: {error}")
        found += [
            f"{record.name}@{alias} points at {number}, which is not ready"
            for alias, number in record.aliases.items()
            if number not in ready
        ]
    return found
