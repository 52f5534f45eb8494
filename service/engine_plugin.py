"""Entry point of the group `vllm.general_plugins`: vLLM calls it in each of its processes."""

from importlib.metadata import version


def on_cpu() -> bool:
    """Whether the installed vLLM is the build for CPUs."""
    return "cpu" in version("vllm")


def install() -> None:
    """Install the corrections that this release of vLLM needs."""
    from service import sampler

    sampler.install()
    if on_cpu():
        from service import forked, lora_ops

        lora_ops.install()
        forked.install()
