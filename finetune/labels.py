"""Probabilities of labels, read from the model's log-probabilities instead of its text.

The labels' tokens, each with its end of turn, form a trie. At a node with several children
the model's probabilities of just these children are normalised; a node with one child costs
nothing. A label's probability is the product along its path, so all of them sum to one.
Where a label is the beginning of another, the end of turn is what tells them apart.

A prompt and all of the trie go through the model as one sequence, in which each of the trie's
tokens sees the prompt and its own beginning alone (tree attention, Miao et al. 2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from adapters.prompt import Renderer
from finetune.batching import make_batches
from finetune.forward import inner_model, run
from finetune.projection import project

_BATCH_TOKENS = 4096
_CLOSE = {torch.float32: 1e-3, torch.float16: 2e-2}
"""Largest difference between log-probabilities that two orders of sums make, in nats."""
_CLOSE_ELSE = 0.1
"""The same of bfloat16."""


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
    if not prompt_ids:
        return torch.zeros(0, len(labels), dtype=torch.float64)
    completions = [renderer.completion_ids(label) for label in labels]
    nodes = branchings(completions)
    with torch.inference_mode():
        parted = _parted_logits(model, prompt_ids, nodes)
    return torch.stack([_walk(rows, nodes, completions) for rows in parted])


def _parted_logits(
    model: Any, prompts: Sequence[list[int]], nodes: Sequence[Branching]
) -> list[Tensor]:
    """Logits [nodes, V] for each prompt."""
    if len(nodes) == 1:
        rows = [[*ids, *nodes[0].prefix] for ids in prompts]
        return _in_batches(rows, 0, lambda some: _last_logits(model, some)[:, None])
    tree = Tree.of(nodes)
    if _sees_what_it_shall(model, prompts[0], nodes, tree):
        added = len(tree.tokens)
        return _in_batches(prompts, added, lambda some: _tree_logits(model, some, tree))
    return [_node_logits(model, ids, nodes) for ids in prompts]


def _in_batches(
    rows: Sequence[list[int]], added: int, compute: Callable[[list[list[int]]], Tensor]
) -> list[Tensor]:
    """What is computed for each row, in batches of rows of like length.

    Args:
        added: tokens that each row takes besides its own.
        compute: [B, …] for B rows.
    """
    found: dict[int, Tensor] = {}
    for batch in make_batches([len(row) + added for row in rows], _BATCH_TOKENS):
        found.update(zip(batch, compute([rows[i] for i in batch]), strict=True))
    return [found[i] for i in range(len(rows))]


@dataclass(frozen=True, slots=True)
class Tree:
    """Beginnings of labels as one sequence of tokens, [T]."""

    tokens: list[int]
    depths: list[int]
    """Tokens up to each, itself included."""
    sees: Tensor
    """[T, T], bool: the tokens on each one's path, itself included."""
    places: list[int]
    """The token after which each branching is; -1 stands for the prompt's last."""

    @classmethod
    def of(cls, nodes: Sequence[Branching]) -> Self:
        paths = {node.prefix[:n] for node in nodes for n in range(1, len(node.prefix) + 1)}
        ordered = sorted(paths, key=lambda path: (len(path), path))
        place = {path: number for number, path in enumerate(ordered)}
        sees = torch.eye(len(ordered), dtype=torch.bool)
        for path, number in place.items():  # the shorter ones come first
            if len(path) > 1:
                sees[number] |= sees[place[path[:-1]]]
        return cls(
            tokens=[path[-1] for path in ordered],
            depths=[len(path) for path in ordered],
            sees=sees,
            places=[place.get(node.prefix, -1) for node in nodes],
        )


def _sees_what_it_shall(
    model: Any, prompt: list[int], nodes: Sequence[Branching], tree: Tree
) -> bool:
    """Whether a mask says all of what the model's layers see, found out on one prompt.

    Layers that pass a state along see the whole sequence, whatever the mask says.
    """
    plain = _node_logits(model, prompt, nodes).log_softmax(-1)
    ours = _tree_logits(model, [prompt], tree)[0].log_softmax(-1)
    dtype = model.get_output_embeddings().weight.dtype
    return float((plain - ours).abs().max()) < _CLOSE.get(dtype, _CLOSE_ELSE)


def _tree_logits(model: Any, prompts: list[list[int]], tree: Tree) -> Tensor:
    """Logits [B, N, V] at N branchings after each of B prompts."""
    width, size = max(map(len, prompts)) + len(tree.tokens), len(tree.tokens)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    sees = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(prompts), 1, 1)
    for row, prompt in enumerate(prompts):
        start, end = len(prompt), len(prompt) + size
        ids[row, :end] = torch.tensor([*prompt, *tree.tokens])
        positions[row, :start] = torch.arange(start)
        positions[row, start:end] = start - 1 + torch.tensor(tree.depths)
        sees[row, start:end, start:end] = tree.sees
    device = model.get_output_embeddings().weight.device
    output = inner_model(model)(
        input_ids=ids.to(device), position_ids=positions.to(device),
        attention_mask=sees[:, None].to(device), use_cache=False,
    )  # fmt: skip
    after = torch.tensor([[len(prompt) + place for place in tree.places] for prompt in prompts])
    rows = torch.arange(len(prompts))[:, None]
    return project(model, output.last_hidden_state[rows, after])


def _walk(
    logits: Tensor, nodes: Sequence[Branching], completions: Sequence[Sequence[int]]
) -> Tensor:
    """Probabilities of the labels, [L], from the logits [nodes, V]."""
    known: dict[tuple[int, ...], dict[int, float]] = {}
    for row, node in zip(logits, nodes, strict=True):
        normalised = torch.log_softmax(row[list(node.children)].double(), -1).tolist()
        known[node.prefix] = dict(zip(node.children, normalised, strict=True))
    totals = []
    for ids in completions:
        steps = [(tuple(ids[:depth]), token) for depth, token in enumerate(ids)]
        totals.append(sum(known[prefix][token] for prefix, token in steps if prefix in known))
    return torch.tensor(totals, dtype=torch.float64).exp()


def _node_logits(model: Any, prompt: list[int], nodes: Sequence[Branching]) -> Tensor:
    """Logits [nodes, V] after one prompt, which goes through the model once."""
    return _last_logits(model, [[*prompt, *node.prefix] for node in nodes])


def _last_logits(model: Any, rows: list[list[int]]) -> Tensor:
    """Logits [B, V] at the last position of each row."""
    done = run(inner_model(model), rows, min(map(len, rows)) - 1)
    last = torch.tensor([len(row) - 1 - done.start for row in rows])
    return project(model, done.states[torch.arange(len(rows)), last])
