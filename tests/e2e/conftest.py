"""The default base model, a short training run, and a server that serves its result."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters.home import Home
from adapters.registry import Registry, Version
from tests.serving import Running, start, stop

MESSAGES = Path(__file__).with_name("messages.jsonl")
BASE = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Trained:
    """A home with one published translator, and what the command said of it."""

    registry: Registry
    version: Version
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two passes over forty pairs, through the command as a user would."""
    if not Home.find().database.exists():
        pytest.fail("no base model: run `make setup` first")
    base = Registry.open().base(BASE)
    registry = Registry.open(tmp_path_factory.mktemp("home"))
    registry.add_base(base)
    settings = [
        "name=short", f"data.train={MESSAGES}", "data.source_lang=en", "data.target_lang=fr",
        "data.max_test_examples=8", "training.epochs=2", "training.batch_tokens=256",
        "evaluation.max_examples=4",
    ]  # fmt: skip
    command = [sys.executable, "-m", "service.cli", "finetune", "run", "translate", "--json"]
    command += ["--home", str(registry.home.root)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(registry, registry.find("short@1"), json.loads(done.stdout))


@pytest.fixture(scope="session")
def serving(trained: Trained) -> Iterator[Running]:
    """A server of that home; the version is promoted while it runs."""
    home = trained.registry.home.root
    process, url = start(home)
    trained.registry.promote(trained.version.reference)
    yield Running(process, trained.registry, trained.registry.base(), url, home / "serve.log")
    stop(process)
