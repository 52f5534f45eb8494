"""Entry point of the group `vllm.general_plugins`: vLLM calls it in each of its processes."""

import signal
from importlib.metadata import version
from multiprocessing import parent_process
from threading import current_thread, main_thread


def on_cpu() -> bool:
    """Whether the installed vLLM is the build for CPUs."""
    return "cpu" in version("vllm")


def install() -> None:
    """Install the corrections that this release of vLLM needs."""
    from service import sampler

    if parent_process() is not None and current_thread() is main_thread():
        # Ctrl-C is for the server, which ends its engine once the requests have left
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sampler.install()
    if on_cpu():
        from service import forked, lora_ops, waiting

        waiting.install()
        lora_ops.install()
        forked.install()
