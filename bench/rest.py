"""Lets two vLLM servers alternate every few requests: the one that is not loaded rests at once.

vLLM's worker spins for 1 s after a step (`SpinCondition` in its shm_broadcast.py). On a machine
of few cores that would be load on the other server, and a pause of a second between blocks lets
the machine drift. Both servers get this plugin or neither; the API process knows nothing of it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NAME = "bench_rest"
SPIN_S = 0.03
"""Longer than a step of the tiny base, so that a loaded worker still spins."""
PAUSE_S = SPIN_S + 0.02


def register() -> None:
    """The entry of the group vllm.general_plugins, called in each of vLLM's processes."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    before = SpinCondition.__init__

    def init(condition: Any, *arguments: Any, **named: Any) -> None:
        before(condition, *arguments, **named)
        condition.busy_loop_s = min(condition.busy_loop_s, SPIN_S)

    SpinCondition.__init__ = init


def with_rest(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """An environment in which vLLM finds the plugin and loads it. folder: for its metadata."""
    metadata = folder / f"{NAME}-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{NAME} = bench.rest:register\n"
    )
    path = [str(folder), str(ROOT), environment.get("PYTHONPATH", "")]
    plugins = [environment.get("VLLM_PLUGINS", ""), NAME]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "VLLM_PLUGINS": ",".join(filter(None, plugins)),
    }
