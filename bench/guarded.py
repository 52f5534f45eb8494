"""A Modiste server with all on that an operator switches on: keys, limits, metrics, JSON logs.

The limits are those of a key and of its project, of each kind, and so high that nothing is refused:
what they cost is measured, not what they do. Admission and metrics are always on.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from adapters.registry import Registry
from service.auth import REFRESH_S
from service.keys import Keys

PROJECT = "bench"
HIGH = 10**9
LIMITS = [
    f"MODISTE_{who}_{what}"
    for who in ("KEY", "PROJECT")
    for what in ("REQUESTS_PER_MINUTE", "TOKENS_PER_MINUTE", "CONCURRENT")
]
SETTINGS = {
    "MODISTE_LOG_FORMAT": "json",
    "MODISTE_LOG_REQUESTS": "true",
    "MODISTE_WORKER_JOBS": "0",
    **dict.fromkeys(LIMITS, str(HIGH)),
}


def guarded(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with all of it on, and no setting of whoever runs the benchmark."""
    own = {
        name: value
        for name, value in environment.items()
        if not name.startswith("MODISTE_") or name == "MODISTE_HOME"
    }
    return own | SETTINGS


def key_headers(home: Path) -> dict[str, str]:
    """Headers of a key of the home's database; made once servers run, which asks for keys then."""
    _, key = Keys(Registry.open(home).database).create(PROJECT)
    time.sleep(2 * REFRESH_S)
    return {"authorization": f"Bearer {key}"}
