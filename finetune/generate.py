"""Greedy generation for many prompts at once."""

from collections.abc import Sequence
from typing import Any

import torch

from adapters.prompt import Renderer
from finetune.batching import make_batches
from finetune.forward import inner_model, run
from finetune.projection import project

_BATCH_TOKENS = 8192
"""Prompts and answers of one batch; their keys and values stay in memory."""


def greedy(
    model: Any, tokenizer: Any, prompt_ids: Sequence[list[int]], max_new_tokens: int | Sequence[int]
) -> list[list[int]]:
    """The most likely next token, again and again, until the end of the turn.

    Args:
        prompt_ids: [N][T_n], none empty.
        max_new_tokens: for all prompts, or one number for each.

    Returns:
        Token ids of each answer in the prompts' order, without the end of turn.
    """
    caps = (
        [max_new_tokens] * len(prompt_ids)
        if isinstance(max_new_tokens, int)
        else list(max_new_tokens)
    )
    ends = end_tokens(model, tokenizer)
    answers: list[list[int]] = [[] for _ in prompt_ids]
    lengths = [len(ids) + cap for ids, cap in zip(prompt_ids, caps, strict=True)]
    with torch.inference_mode():
        for batch in make_batches(lengths, _BATCH_TOKENS):
            said = _answer([prompt_ids[i] for i in batch], [caps[i] for i in batch], model, ends)
            for position, answer in zip(batch, said, strict=True):
                answers[position] = answer
    return answers


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens at which generation stops, as the engine does: end of turn, end of text."""
    found = {Renderer(tokenizer).end_id, tokenizer.eos_token_id}
    configured = getattr(model.generation_config, "eos_token_id", None)
    found |= set(configured) if isinstance(configured, list) else {configured}
    return frozenset(token for token in found if token is not None)


def _answer(
    prompts: list[list[int]], caps: list[int], model: Any, ends: frozenset[int]
) -> list[list[int]]:
    """Answers to one batch; sequences that ended leave it once half of it is idle."""
    inner = inner_model(model)
    first = run(inner, prompts, min(map(len, prompts)) - 1, keep_cache=True)
    cache, device = first.cache, first.states.device
    width = first.start + first.states.shape[1]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    # [B, S]: padding stands between a prompt and its answer, and must not be seen
    seen = (torch.arange(width, device=device) < lengths[:, None]).long()
    states = first.states[torch.arange(len(prompts)), lengths - 1 - first.start]  # [B, H]
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch answers
    open_rows = [caps[row] > 0 for row in rows]
    while any(open_rows):
        tokens = project(model, states).argmax(-1)  # [B]
        for place, token in enumerate(tokens.tolist()):
            row = rows[place]
            if open_rows[place] and token not in ends:
                answers[row].append(token)
            open_rows[place] &= token not in ends and len(answers[row]) < caps[row]
        if sum(open_rows) * 2 <= len(rows):
            kept = [place for place, still in enumerate(open_rows) if still]
            if not kept:
                break
            index = torch.tensor(kept, device=device)
            cache.batch_select_indices(index)
            seen, lengths, tokens = seen[index], lengths[index], tokens[index]
            rows, open_rows = [rows[place] for place in kept], [True] * len(kept)
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], dim=1)
        output = inner(
            input_ids=tokens[:, None],
            attention_mask=seen,
            position_ids=lengths[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        states, lengths = output.last_hidden_state[:, -1], lengths + 1
    return answers
