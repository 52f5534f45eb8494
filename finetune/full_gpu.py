"""A GPU whose memory is full is told as such, with what to do about it.

torch is not imported for it: command lines begin without.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from adapters.errors import AdapterError


class NotEnoughMemory(AdapterError):
    """More was asked for than the GPU has left."""

    code = "not_enough_memory"


@contextmanager
def told_when_full() -> Iterator[None]:
    """What runs here, or in a function that this decorates, fails with a remedy.

    Raises:
        NotEnoughMemory: it needs more memory than the GPU has left.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise NotEnoughMemory(
            f"the GPU's memory is full: {str(error).partition('. GPU')[0]}",
            hint="end what else uses the GPU; for training, lower training.micro_batch_tokens, "
            "training.batch_tokens or training.max_length",
        ) from error
