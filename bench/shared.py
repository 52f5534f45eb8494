"""What prompts share is computed once: the prefix cache's share of what it could have.

A translator's own long prompt stands before each text of a list, and one context before each of
several questions. Of a prompt can be shared what it has in common with one before it, in whole
blocks of the cache, and never all of it, for its last token must be computed. On the tests' tiny
base: how many tokens are shared is the same on any.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoTokenizer

from adapters.prompt import (
    AnswerInput,
    PromptTemplate,
    Renderer,
    TranslateInput,
    default_prompt,
)
from adapters.registry import Registry
from bench.client import LoadError
from bench.harness import Report, at_least
from bench.overhead import distinct_prompts
from bench.servers import free_port, running
from bench.tiny import launch
from bench.whole import WholeClient
from tests.made import Recipe, adapter_folder, add_tiny_base

BLOCK = 32
"""Tokens; the block size that Modiste gives vLLM on a CPU."""
STYLE = (
    "You translate from {source} to {target} for the help pages of an office suite. Say vous, "
    "never tu. Keep names of menus in English. Reply with the translation only."
)
CONTEXT = (
    "The harbour was built in 1874 of granite from the quarries in the north. It has two piers, a "
    "lighthouse that was lit first in 1881, and room for forty ships."
)
LISTS, LISTS_SHORT, ITEMS = 8, 2, 24
PLAIN = re.compile(r"[\w .,;:?!'()-]+")


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Send lists, and compare what the cache gave with what it could have given."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    base = add_tiny_base(registry)
    template = PromptTemplate(task="translate", system=STYLE, user="{text}")
    recipe = Recipe("style", seed=1, task="translate", languages=["en", "fr"])
    made = registry.home.root / "made"
    draft = adapter_folder(base, recipe, made).model_copy(update={"prompt": template})
    registry.promote(registry.publish(made, draft).reference)
    renderer = Renderer(AutoTokenizer.from_pretrained(base.path))
    texts = plain_prompts()
    start = launch("shared", registry.home.root, free_port(), {"worker_jobs": 0})
    with running([start], folder / "logs") as (server,), WholeClient() as client:
        for route, bodies, prompts in (
            _translations(texts, template, renderer),
            _questions(texts, server.model, renderer),
        ):
            lists = LISTS_SHORT if short else LISTS
            sent = prompts[: lists * ITEMS]
            before = _cached(server.port, route)
            blocks = [client.run(server.port, route, [body], 1) for body in bodies[:lists]]
            cached = _cached(server.port, route) - before
            read = sum(block.answers[0]["usage"]["prompt_tokens"] for block in blocks)
            if read != (expected := sum(map(len, sent))):
                raise LoadError(f"{route}: {read} tokens were read, not {expected}")
            _claim(report, route, cached, sent)


def plain_prompts() -> Iterator[str]:
    """Passages without placeholders: a translation that breaks one is tried four times more."""
    return (text for text in distinct_prompts() if PLAIN.fullmatch(text))


Asked = tuple[str, list[dict[str, Any]], list[list[int]]]


def _translations(texts: Iterator[str], template: PromptTemplate, renderer: Renderer) -> Asked:
    lists = [list(islice(texts, ITEMS)) for _ in range(LISTS)]
    bodies = [
        {"model": "style", "text": some, "source_lang": "en", "target_lang": "fr", "max_tokens": 4}
        for some in lists
    ]
    prompts = [
        renderer.prompt_ids(template, TranslateInput(text, "en", "fr"))
        for some in lists
        for text in some
    ]
    return "/v1/translate", bodies, prompts


def _questions(texts: Iterator[str], model: str, renderer: Renderer) -> Asked:
    lists = [[f"What of {text[:60]}?" for text in islice(texts, ITEMS)] for _ in range(LISTS)]
    bodies: list[dict[str, Any]] = [
        {"model": model, "question": some, "context": CONTEXT, "max_tokens": 4} for some in lists
    ]
    prompts = [
        renderer.prompt_ids(default_prompt("answer"), AnswerInput(question, CONTEXT))
        for some in lists
        for question in some
    ]
    return "/v1/answer", bodies, prompts


def shareable(prompts: Sequence[Sequence[int]], block: int = BLOCK) -> int:
    """Tokens in whole blocks that a prompt has in common with one before it."""
    known: set[tuple[int, ...]] = set()
    found = 0
    for prompt in prompts:
        starts = [tuple(prompt[:end]) for end in range(block, len(prompt) + 1, block)]
        common = len(list(takewhile(known.__contains__, starts))) * block
        found += min(common, (len(prompt) - 1) // block * block)
        known.update(starts)
    return found


def _claim(report: Report, route: str, cached: float, prompts: Sequence[Sequence[int]]) -> None:
    most = shareable(prompts)
    what = f"{route}: tokens from the prefix cache, of those in shareable whole blocks"
    report.add(at_least(what, cached / most, 0.95))
    report.measurements.append(
        {
            "route": route, "prompts": len(prompts), "tokens": sum(map(len, prompts)),
            "shareable": most, "from the cache": int(cached),
        }
    )  # fmt: skip


def _cached(port: int, route: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    name = "modiste_cached_tokens_total"
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(name) and f'route="{route}"' in line
    )
