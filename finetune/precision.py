"""float32 or bfloat16: in which one this machine trains the base faster, measured.

What a CPU does with bfloat16 differs by a factor of ten between machines, and a product's
speed alone says too little: norms, the adapter and conversions between dtypes stay float32.
So a whole layer of the base's shape is timed, forward and backward.
"""

import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from finetune.files import write_whole
from finetune.memory import Shape, layer_weights

_CLEARLY_FASTER = 1.25
"""How much faster bfloat16 must be: its rounding is no gain in itself."""
_HEAD, _RANK = 64, 16
_FLOPS, _TOKENS = 4e9, (64, 1024)
"""What is computed at a time on a CPU, within these numbers of tokens."""
_GPU_TOKENS = (256, 16384)
"""A GPU gets a batch, within these: with few tokens all that counts is starting its kernels."""


def training_dtype(
    wanted: str,
    device: str,
    base: Path | None = None,
    record: Path | None = None,
    batch: int = 1024,
) -> str:
    """What a recipe wants, else bfloat16 where it is measured to be clearly faster.

    On a CPU, where it is served in float32, a base that is stored so is not rounded.

    Args:
        base: its folder; without it, float32 is taken.
        record: a file of the run that keeps what was found. Measured again, it could come out
            otherwise, and a resumed run would go on with other losses.
        batch: its tokens.
    """
    if wanted != "auto":
        return wanted
    if record is not None and record.is_file():
        return str(json.loads(record.read_text())["dtype"])
    if base is None:
        return "float32"
    chosen, seconds = faster_dtype(base, device, batch)
    if record is not None and seconds:
        write_whole(record, json.dumps({"dtype": chosen, "layer_s": seconds}) + "\n")
    return chosen


def faster_dtype(base: Path, device: str, batch: int) -> tuple[str, dict[str, float]]:
    """The dtype for a base, and the seconds that were measured; none where nothing was.

    Args:
        batch: its tokens.
    """
    shape = Shape.of(base)
    if shape is None or (device == "cpu" and stored_dtype(base) != "bfloat16"):
        return "float32", {}
    seconds = layer_seconds(shape, device, batch)
    faster = _CLEARLY_FASTER * seconds["bfloat16"] < seconds["float32"]
    return "bfloat16" if faster else "float32", seconds


def stored_dtype(base: Path) -> str:
    """The dtype of a base's weights, as its config.json says."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def layer_seconds(shape: Shape, device: str, batch: int) -> dict[str, float]:
    """Seconds that a training step of one layer takes in each dtype, the best of three.

    On a CPU one core's time is counted, which other processes hardly disturb.

    Args:
        batch: its tokens; a GPU computes about as many at a time.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokens = _tokens(shape, device, batch)
    layers = {name: _Layer(shape, device, name, tokens) for name in ("float32", "bfloat16")}
    best: dict[str, float] = {}
    for _ in range(4):  # in turn, so that what disturbs meets both; the first warms up
        for name, layer in layers.items():
            started = clock()
            layer.step()
            best[name] = min(best.get(name, float("inf")), clock() - started)
    torch.set_num_threads(threads)
    return best


def _tokens(shape: Shape, device: str, batch: int) -> int:
    """How many are computed at a time."""
    if device == "cuda":
        least, most = _GPU_TOKENS
        return min(max(batch, least), most)
    least, most = _TOKENS
    flops_a_token = 4 * layer_weights(shape.hidden, shape.intermediate)
    return int(min(max(_FLOPS / flops_a_token, least), most))


class _Layer:
    """A decoder layer with frozen weights and a LoRA, as training computes it."""

    def __init__(self, shape: Shape, device: str, dtype: str, tokens: int) -> None:
        hidden, inner = shape.hidden, shape.intermediate
        self._dtype, self._device = getattr(torch, dtype), device
        self._heads = hidden // _HEAD if hidden % _HEAD == 0 else 1
        sizes = {
            "q": (hidden, hidden), "k": (hidden, hidden), "v": (hidden, hidden),
            "o": (hidden, hidden), "gate": (inner, hidden), "up": (inner, hidden),
            "down": (hidden, inner),
        }  # fmt: skip
        self._weights = {n: self._full(s, self._dtype) for n, s in sizes.items()}
        self._a = {n: self._full((_RANK, s[1])).requires_grad_() for n, s in sizes.items()}
        self._b = {n: self._full((s[0], _RANK)).requires_grad_() for n, s in sizes.items()}
        self._input = self._full((tokens, hidden), self._dtype).requires_grad_()

    def _full(self, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(size, 1 / size[-1], device=self._device, dtype=dtype)

    def _linear(self, name: str, states: Tensor) -> Tensor:
        dtype = self._dtype if self._device == "cuda" else torch.float32
        a, b = self._a[name].to(dtype), self._b[name].to(dtype)
        adapted = linear(linear(states.to(dtype), a), b)
        return linear(states, self._weights[name]) + adapted.to(states.dtype)

    def _norm(self, states: Tensor) -> Tensor:
        return rms_norm(states.float(), states.shape[-1:]).to(states.dtype)

    def step(self) -> None:
        """Forward and backward."""
        states = self._norm(self._input)
        split = (len(states), self._heads, -1)
        q, k, v = (self._linear(n, states).view(split).transpose(0, 1)[None] for n in "qkv")
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)
        middle = self._input + self._linear("o", mixed.reshape(states.shape))
        states = self._norm(middle)
        inner = silu(self._linear("gate", states)) * self._linear("up", states)
        (middle + self._linear("down", inner)).float().sum().backward()
        if self._device == "cuda":
            torch.cuda.synchronize()
