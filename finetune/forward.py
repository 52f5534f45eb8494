"""Hidden states of many sequences, without computing what they share more than once.

Training and testing feed a model sequences that begin alike: the same system message, the
same instruction. Their common beginning goes through the model once; its keys and values
are then repeated for every sequence. Gradients flow through them as usual, and the result
equals that of a plain batch up to the order of floating-point sums.

Sequences are padded on the right. Attention is causal, so no real token ever sees padding
and no attention mask is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.data import Row
from finetune.memory import layer_weights
from finetune.projection import project, token_losses

_WORTHWHILE_TOKENS = 96
"""Saved tokens from which a second pass through the layers pays for its overhead on a CPU."""
_WORTHWHILE_WEIGHTS = 5e11
"""On a GPU the same in saved tokens times weights of a layer: below, a pass takes as long as its
kernels take to be started, as many for one token as for a thousand."""


@dataclass(slots=True)
class Pass:
    """What one pass gave."""

    states: Tensor
    """[B, R, H] after the last norm; column c is position `start + c` of its sequence."""
    start: int
    cache: Any
    """Keys and values of all positions, padding included; None when not asked for."""


def run(inner: Any, rows: list[list[int]], limit: int, *, keep_cache: bool = False) -> Pass:
    """Run sequences through a model without its vocabulary projection.

    Args:
        inner: the model inside a causal language model, as `inner_model` finds it.
        rows: token ids, [B][T_b], none empty.
        limit: the first position whose state is needed in any row; at most that many
            tokens are shared.
    """
    device = inner.get_input_embeddings().weight.device
    start = common_prefix(rows, limit)
    # checkpointed layers run again in the backward pass, when a cache would grow once more
    checkpointed = inner.training and getattr(inner, "is_gradient_checkpointing", False)
    if checkpointed or (len(rows) - 1) * start < _worthwhile_tokens(inner, device.type):
        start = 0
    cache = None
    if start:
        prefix = torch.tensor([rows[0][:start]], device=device)
        cache = inner(input_ids=prefix, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rows))
    width = max(map(len, rows)) - start
    padded = [row[start:] + [0] * (width + start - len(row)) for row in rows]
    output = inner(
        input_ids=torch.tensor(padded, device=device),
        past_key_values=cache,
        use_cache=keep_cache or cache is not None,
    )
    return Pass(output.last_hidden_state, start, output.past_key_values if keep_cache else None)


def _worthwhile_tokens(inner: Any, device: str) -> float:
    if device == "cpu":
        return _WORTHWHILE_TOKENS
    config = inner.config
    hidden = int(config.hidden_size)
    inner_size = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return max(_WORTHWHILE_TOKENS, _WORTHWHILE_WEIGHTS / layer_weights(hidden, inner_size))


def common_prefix(rows: list[list[int]], limit: int) -> int:
    """Number of leading tokens that all rows share, at most `limit` and less than any row."""
    low, high = min(rows), max(rows)  # in lexical order these two differ first
    longest = min(limit, min(map(len, rows)) - 1)
    for position in range(longest):
        if low[position] != high[position]:
            return position
    return max(longest, 0)


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Answer as the base; peft's own `disable_adapter` also looks at every layer each time."""
    model.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        model.base_model.enable_adapter_layers()


def inner_model(model: Any) -> Any:
    """The model without its vocabulary projection, inside peft's wrapping or not."""
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    return causal.get_decoder()


def projection_is_plain(model: Any, ids: list[int]) -> bool:
    """Whether the model's logits are just `project` of its hidden states.

    Some architectures scale or cap them afterwards; leaving that out would train on
    other probabilities than the engine serves.
    """
    with torch.no_grad():
        device = model.get_output_embeddings().weight.device
        whole = model(input_ids=torch.tensor([ids], device=device)).logits[0].float()
        ours = project(model, run(inner_model(model), [ids], 0).states[0])
    return bool(torch.allclose(whole, ours, rtol=1e-2, atol=1e-2))


def supervised_losses(model: Any, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Loss of every supervised token, and whose it is.

    Only supervised positions go through the vocabulary projection, which for a small
    model with a large vocabulary is a good part of all work.

    Returns:
        Cross-entropies in nats, [N], and the row of each, [N], rows in order.
    """
    limit = max(min(row.supervised[0] for row in rows) - 1, 0)
    done = run(inner_model(model), [row.ids for row in rows], limit)
    width = done.states.shape[1]
    places, targets, owners = [], [], []
    for number, row in enumerate(rows):
        for position in row.supervised:  # the token at `position` is said by the state before it
            places.append(number * width + position - 1 - done.start)
            targets.append(row.ids[position])
            owners.append(number)
    device = done.states.device
    states = done.states.flatten(0, 1)[torch.tensor(places, device=device)]
    losses = token_losses(model, states, torch.tensor(targets, device=device))
    return losses, torch.tensor(owners)
