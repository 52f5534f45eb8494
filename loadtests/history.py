"""Runs of a scenario, one line each, so that versions can be compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("modiste", "version", "vllm")
"""Keys of a server's /version that tell it best, in this order; bare vLLM has `version`."""


def version_of(server: Mapping[str, Any]) -> str:
    """A server in a few words."""
    known = [f"{name} {server[name]}" for name in NAMES if isinstance(server.get(name), str)]
    return ", ".join(known) if known else "unknown"


def append(path: Path, run: Mapping[str, Any]) -> None:
    """Add a run, as tables.as_json gives it."""
    line = {
        "scenario": run["scenario"],
        "began": run["began"],
        "host": run["host"],
        "version": version_of(run["server"]),
        "holds": run["holds"],
        "figures": run["figures"],
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path, scenario: str, most: int = 20) -> list[dict[str, Any]]:
    """The last runs of a scenario, the oldest first; lines that are none are passed over."""
    runs = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                run = json.loads(line)
            except ValueError:  # cut off by a full disk or a kill
                continue
            if isinstance(run, dict) and run.get("scenario") == scenario:
                runs.append(run)
    return runs[-most:]
