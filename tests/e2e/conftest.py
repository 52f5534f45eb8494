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
from finetune import own_server
from tests.serving import Reached

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
    """One pass over forty pairs, through the command as a user would."""
    if not Home.find().database.exists():
        pytest.fail("no base model: run `make setup` first")
    base = Registry.open().base(BASE)
    registry = Registry.open(tmp_path_factory.mktemp("home"))
    registry.add_base(base)
    settings = [
        "name=short", f"data.train={MESSAGES}", "data.source_lang=en", "data.target_lang=fr",
        "data.max_test_examples=8", "training.epochs=1", "training.batch_tokens=256",
        "evaluation.max_examples=2", "evaluation.max_new_tokens=24", "training.dtype=float32",
    ]  # fmt: skip
    command = [sys.executable, "-m", "service.cli", "finetune", "run", "translate", "--json"]
    command += ["--home", str(registry.home.root)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(registry, registry.find("short@1"), json.loads(done.stdout))


@pytest.fixture(scope="session")
def serving(trained: Trained) -> Iterator[Reached]:
    """A server of that home, started as evaluation does; the version is promoted while it runs."""
    registry, base = trained.registry, trained.registry.base()
    log = registry.home.root / "serve.log"
    with own_server.serving(registry, base, log, print) as url:
        registry.promote(trained.version.reference)
        yield Reached(registry, base, url, log)
