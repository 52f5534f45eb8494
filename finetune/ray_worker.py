"""A worker's side of Ray: it joins the others, then trains."""

import os
import socket
from dataclasses import replace
from datetime import timedelta
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig

_JOIN = timedelta(minutes=5)
_WAIT = timedelta(hours=12)
"""The others wait while the leader measures held-out examples. A worker that is lost is noticed
at once all the same: its connections break, and Ray watches its process."""
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class _NoBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # as for torch: neighbours exchange over their own links


class OwnGroup(TorchConfig):  # type: ignore[misc]
    """Workers make their process group themselves: Ray's would listen on every address."""

    @property
    def backend_cls(self) -> Any:
        return _NoBackend


def work(job: Any, threads: int) -> Exception | None:
    """Train as one of the workers.

    Args:
        job: a `finetune.plan.Job`.

    Returns:
        The leader's: why training ended early, if it did.
    """
    from finetune.workers import follow, lead  # here: Ray's controller needs no transformers

    torch.set_num_threads(threads)
    job = replace(job, plan=replace(job.plan, threads=threads))
    group = _join(job.plan.device)
    if group.rank == 0:
        return lead(job, group)
    follow(job, group)
    return None


def _join(device: str) -> Any:
    """Meet the other workers at an address of the first one's machine."""
    from finetune.group import Workers

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    here = ray.util.get_node_ip_address()
    if here == "127.0.0.1":
        for name in _INTERFACES:
            os.environ.setdefault(name, "lo")
    server = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in here else socket.AF_INET
        server = socket.create_server((here, 0), family=family)
    address = broadcast_from_rank_zero(None if server is None else server.getsockname()[:2])
    store = dist.TCPStore(
        *address, size, is_master=rank == 0, timeout=_JOIN,
        master_listen_fd=None if server is None else server.detach(),
    )  # fmt: skip
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_WAIT)
    return Workers(device)
