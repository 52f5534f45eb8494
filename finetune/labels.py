"""Probabilities of labels, read from the model's log-probabilities instead of its text.

The labels' tokens, each with its end of turn, form a trie. At a node with several children
the model's probabilities of just these children are normalised; a node with one child costs
nothing. A label's probability is the product along its path, so all of them sum to one.
Where a label is the beginning of another, the end of turn is what tells them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.prompt import Renderer
from finetune.batching import make_batches
from finetune.forward import inner_model, run
from finetune.projection import project

_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Branching:
    """A place in the trie where labels part."""

    prefix: tuple[int, ...]
    children: tuple[int, ...]


def branchings(completions: Sequence[Sequence[int]]) -> list[Branching]:
    """Every branching node, the shortest prefix first.

    Args:
        completions: token ids of each label with its end of turn.
    """
    children: dict[tuple[int, ...], set[int]] = {}
    for ids in completions:
        for depth, token in enumerate(ids):
            children.setdefault(tuple(ids[:depth]), set()).add(token)
    nodes = [
        Branching(prefix, tuple(sorted(tokens)))
        for prefix, tokens in children.items()
        if len(tokens) > 1
    ]
    return sorted(nodes, key=lambda node: (len(node.prefix), node.prefix))


def label_probabilities(
    model: Any, renderer: Renderer, prompt_ids: Sequence[list[int]], labels: Sequence[str]
) -> Tensor:
    """Probability of each label after each prompt, [N, L] in float64; rows sum to one."""
    completions = [renderer.completion_ids(label) for label in labels]
    nodes = branchings(completions)
    if len(nodes) == 1:
        logits = _next_logits(model, [[*ids, *nodes[0].prefix] for ids in prompt_ids])
        parted = [[row] for row in logits]
    else:
        parted = [_node_logits(model, ids, nodes) for ids in prompt_ids]
    return torch.stack([_walk(rows, nodes, completions) for rows in parted])


def _walk(
    logits: Sequence[Tensor], nodes: Sequence[Branching], completions: Sequence[Sequence[int]]
) -> Tensor:
    """Probabilities of the labels, [L], from the logits [V] at each node."""
    known: dict[tuple[int, ...], dict[int, float]] = {}
    for row, node in zip(logits, nodes, strict=True):
        normalised = torch.log_softmax(row[list(node.children)].double(), -1).tolist()
        known[node.prefix] = dict(zip(node.children, normalised, strict=True))
    totals = []
    for ids in completions:
        steps = [(tuple(ids[:depth]), token) for depth, token in enumerate(ids)]
        totals.append(sum(known[prefix][token] for prefix, token in steps if prefix in known))
    return torch.tensor(totals, dtype=torch.float64).exp()


def _node_logits(model: Any, prompt: list[int], nodes: Sequence[Branching]) -> list[Tensor]:
    """Logits [V] at each node after one prompt, which goes through the model once."""
    rows = [[*prompt, *node.prefix] for node in nodes]
    with torch.inference_mode():
        return list(_last_logits(model, rows))


def _next_logits(model: Any, rows: Sequence[list[int]]) -> list[Tensor]:
    """Logits [V] after each of many sequences."""
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        for batch in make_batches([len(row) for row in rows], _BATCH_TOKENS):
            logits = _last_logits(model, [rows[i] for i in batch])
            found.update(zip(batch, logits, strict=True))
    return [found[i] for i in range(len(rows))]


def _last_logits(model: Any, rows: list[list[int]]) -> Tensor:
    """Logits [B, V] at the last position of each row."""
    done = run(inner_model(model), rows, min(map(len, rows)) - 1)
    last = torch.tensor([len(row) - 1 - done.start for row in rows])
    return project(model, done.states[torch.arange(len(rows)), last])
