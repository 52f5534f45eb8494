"""Entry point of the group `vllm.general_plugins`: vLLM calls it in each of its processes."""

from importlib.metadata import version


def install() -> None:
    """Install the corrections that this release of vLLM needs."""
    from service import sampler

    sampler.install()
    if "cpu" in version("vllm"):
        from service import lora_ops

        lora_ops.install()
