"""On CPU, vLLM's processes are forked from one that has imported what they need.

vLLM spawns its engine, and the engine its worker, each of which imports torch and vLLM anew, one
after the other: most of a start. Python's fork server imports them once, while the front end
does the same, and each process begins as a copy of it.

A child of the fork server has the server's environment, and an OpenMP that has read it. So it is
handed the environment that it would have had, and does by calls what OpenMP would have read there.
"""

import multiprocessing
import os
import re
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from typing import Any

PRELOADED = (
    "vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama", "service.inspector", "service.lora_ops",
)  # fmt: skip
_PLACE = re.compile(r"\{([0-9,]+)\}")


def begin() -> None:
    """Start the fork server; it imports while this process goes on."""
    forkserver.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


def install() -> None:
    """Let vLLM start its processes by the fork server, where there is one."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid is None and forkserver.get_inherited_fds() is None:
        return
    from vllm.v1.engine import utils
    from vllm.v1.executor import multiproc_executor

    for module in (utils, multiproc_executor):
        module.get_mp_context = _Context


class _Context(multiprocessing.context.ForkServerContext):
    """Hands each process the environment of the one that starts it."""

    def Process(self, *, target: Callable[..., Any], **more: Any) -> Any:  # type: ignore[override]  # noqa: N802
        kwargs = {**more.pop("kwargs", {}), "_target": target, "_environment": dict(os.environ)}
        return super().Process(target=_run, kwargs=kwargs, **more)


def _run(_target: Callable[..., Any], _environment: dict[str, str], **kwargs: Any) -> None:
    os.environ.clear()
    os.environ.update(_environment)
    # what this process starts comes from the same fork server, not from another one
    server: Any = forkserver._forkserver
    server.ensure_running = resource_tracker.ensure_running
    _bind_threads()
    _target(**kwargs)


def _bind_threads() -> None:
    """As OpenMP does by OMP_PLACES and OMP_NUM_THREADS: one place, all threads within it."""
    place = _PLACE.fullmatch(os.environ.get("OMP_PLACES", ""))
    if place is None:
        return
    import torch

    os.sched_setaffinity(0, {int(core) for core in place[1].split(",")})
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
