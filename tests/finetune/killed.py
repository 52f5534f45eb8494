"""Runs that are killed with -9 at random steps and resumed each time; a process of its own.

    python -m tests.finetune.killed HOME SEED RECIPE=TIMES …

Prints the steps at which each was killed, as JSON. Children are forked before torch has
computed anything, so that each starts in milliseconds.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import transformers.models.llama.modeling_llama  # noqa: F401 - else each child loads them
from rich.console import Console

from adapters.registry import Registry
from finetune.config import read_recipe
from finetune.run import Run, steps_to_run

DEADLINE_S = 60.0


def main(home: Path, seed: int, runs: list[str]) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one thread, the same for every run
    chance = random.Random(seed)
    wanted = [run.split("=") for run in runs]
    print(json.dumps([kill_often(home, recipe, int(times), chance) for recipe, times in wanted]))


def kill_often(home: Path, recipe: str, times: int, chance: random.Random) -> list[int]:
    killed: list[int] = []
    for number in range(times + 1):
        before = steps_done(home, recipe)
        child = os.fork()
        if child == 0:
            train(home, recipe)
        if number < times:
            killed.append(kill_at(child, home, recipe, before + chance.randint(5, 11)))
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        assert ended == (-signal.SIGKILL if number < times else 0), (number, ended)
    return killed


def train(home: Path, recipe: str) -> None:
    run = Run(read_recipe(recipe), Registry.open(home), Console(stderr=True), resume=True)
    with run.locked():
        for _, work in steps_to_run(run, "train"):
            work()
    os._exit(0)


def kill_at(child: int, home: Path, recipe: str, step: int) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while (done := steps_done(home, recipe)) < step:
        assert time.monotonic() < deadline, f"no step {step} in {DEADLINE_S} s"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return done


def steps_done(home: Path, recipe: str) -> int:
    found = list((home / "runs").glob(f"{Path(recipe).stem}-*/metrics.jsonl"))
    return found[0].read_bytes().count(b"\n") if found else 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
