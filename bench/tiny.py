"""A Modiste server of a home folder whose base is the tests' tiny one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.servers import MODISTE, Launch


def launch(
    label: str, home: Path, port: int, settings: Mapping[str, Any], flags: Sequence[str] = ()
) -> Launch:
    """How to start it; settings are those of `modiste.yaml`, flags end its command."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("MODISTE_")
    }
    environment |= {f"MODISTE_{key.upper()}": str(value) for key, value in settings.items()}
    environment |= {"MODISTE_HOME": str(home), "MODISTE_KV_CACHE_GIB": "1"}
    command = [MODISTE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    return Launch(label, [*command, *flags], environment, port, "/health/ready")
