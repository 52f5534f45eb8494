"""From records to examples, from examples to token ids, and the split in train and test.

The split depends on each example's own content alone, so adding data never moves an
example from one side to the other.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adapters.digests import digest_file, digest_json
from adapters.prompt import PromptTemplate, Renderer
from finetune.config import Data, Recipe
from finetune.examples import Chat, Example, Preference, examples_of, label_set
from finetune.sources import BrokenData, find_files, read_files

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Row:
    """An example as training and evaluation use it."""

    split: Split
    origin: str
    key: str
    input: dict[str, Any]
    references: list[str]
    prompt_ids: list[int]
    """[P] what the model is given when it is tested."""
    ids: list[int]
    """[T] what it is trained on, cut to max_length."""
    supervised: list[int]
    """Positions in `ids` of the tokens that the model must say, ascending."""
    truncated: bool
    rejected_ids: list[int] = field(default_factory=list)
    """[T'] of a preference: the same prompt with the answer that was not preferred."""
    rejected_supervised: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Prepared:
    """All rows and what is known about where they came from."""

    rows: list[Row]
    labels: list[str]
    sources: dict[str, dict[str, str]]
    """Split -> file -> digest of its bytes, for the splits that have files of their own."""
    counts: dict[str, int]
    """Broken and skipped records, and rows left out, by reason."""

    @property
    def separate_test(self) -> bool:
        """Whether the held-out examples have files of their own."""
        return "test" in self.sources

    def of(self, split: Split) -> list[Row]:
        return [row for row in self.rows if row.split == split]


def prepare(recipe: Recipe, renderer: Renderer, context_length: int) -> Prepared:
    """Read, check, split and tokenise all data of a recipe.

    Raises:
        BrokenData: with every broken line of every file, unless they are to be skipped.
        InvalidInput: files that are missing or of an unknown kind.
    """
    data = recipe.data
    files = data_files(data)
    readings = {split: read_files(paths) for split, paths in files.items()}
    labels = label_set(recipe, readings["train"])
    examples: dict[Split, list[Example]] = {}
    for split, reading in readings.items():
        examples[split] = list(examples_of(reading, recipe, labels))
    broken = [item for reading in readings.values() for item in reading.broken]
    if broken and data.on_broken == "error":
        raise BrokenData(broken)
    counts: Counter[str] = Counter()
    for reading in readings.values():
        counts.update(reading.skipped)
        counts["broken lines"] += len(reading.broken)
    if "test" not in examples:
        examples["train"], examples["test"] = split_examples(
            examples["train"], data.holdout_fraction
        )
    if data.max_examples is not None:
        examples["train"] = sample(examples["train"], data.max_examples)
    examples["test"] = sample(examples["test"], data.max_test_examples)
    max_length = min(recipe.training.max_length, context_length)
    rows = [
        tokenise(example, split, recipe.template, renderer, max_length)
        for split, members in examples.items()
        for example in members
    ]
    fitting = [r for r in rows if r.split != "test" or len(r.prompt_ids) < context_length]
    counts["held-out prompts too long for the base"] = len(rows) - len(fitting)
    return Prepared(fitting, labels, source_digests(files), dict(+counts))


def data_files(data: Data) -> dict[Split, list[Path]]:
    """The files of each split that has files of its own.

    Raises:
        InvalidInput: a file is missing or of an unknown kind.
    """
    given: dict[Split, list[str] | None] = {
        "train": data.train,
        "validation": data.validation,
        "test": data.test,
    }
    return {
        split: find_files(patterns, f"data.{split}")
        for split, patterns in given.items()
        if patterns is not None
    }


def source_digests(files: dict[Split, list[Path]]) -> dict[str, dict[str, str]]:
    """Split -> file -> digest of its bytes as they are now."""
    return {
        split: {str(path): digest_file(path) for path in paths} for split, paths in files.items()
    }


def split_examples(
    examples: list[Example], holdout_fraction: float
) -> tuple[list[Example], list[Example]]:
    """Part examples in train and test by their keys; equal inputs stay together.

    Asked for a part of few examples, it holds out the one with the lowest key at least.
    """
    limit = holdout_fraction * 16**8
    test = {e.key for e in examples if int(e.key[:8], 16) < limit}
    keys = {e.key for e in examples}
    if not test and holdout_fraction > 0 and len(keys) > 1:
        test = {min(keys)}
    return (
        [e for e in examples if e.key not in test],
        [e for e in examples if e.key in test],
    )


def sample(examples: list[Example], count: int) -> list[Example]:
    """A sample that depends on the examples' content alone, in their order."""
    if len(examples) <= count:
        return examples
    order = sorted(range(len(examples)), key=lambda i: (examples[i].key[8:], i))
    return [examples[i] for i in sorted(order[:count])]


def tokenise(
    example: Example, split: Split, template: PromptTemplate, renderer: Renderer, max_length: int
) -> Row:
    """Token ids of one example, cut at the end to `max_length`."""
    rejected: tuple[list[int], list[bool]] = ([], [])
    if isinstance(example.input, Chat):
        messages = list(example.input.messages)
        shown: dict[str, Any] = {"messages": messages[: example.input.last]}
        prompt_ids = renderer.chat_ids(shown["messages"])
        ids, says = renderer.conversation(messages)
        if isinstance(example.input, Preference):
            other = {"role": "assistant", "content": example.input.rejected}
            rejected = renderer.conversation([*shown["messages"], other])
            shown["rejected"] = example.input.rejected
    else:
        prompt_ids = renderer.prompt_ids(template, example.input)
        said = renderer.completion_ids(example.references[0])
        ids, says = prompt_ids + said, [False] * len(prompt_ids) + [True] * len(said)
        shown = {k: v for k, v in dataclasses.asdict(example.input).items() if k != "labels"}
    return Row(
        split=split,
        origin=example.origin,
        key=example.key,
        input=shown,
        references=list(example.references),
        prompt_ids=prompt_ids,
        ids=ids[:max_length],
        supervised=_spoken(says[:max_length]),
        truncated=max(len(ids), len(rejected[0])) > max_length,
        rejected_ids=rejected[0][:max_length],
        rejected_supervised=_spoken(rejected[1][:max_length]),
    )


def _spoken(says: list[bool]) -> list[int]:
    return [position for position, spoken in enumerate(says) if spoken]


def save_prepared(prepared: Prepared, folder: Path, base: str) -> None:
    """Write `prepared.jsonl` and then `dataset.json`, which marks the pair as whole.

    Args:
        base: fingerprint of the base model whose tokenizer made the ids.
    """
    (folder / "dataset.json").unlink(missing_ok=True)
    with (folder / "prepared.jsonl").open("w", encoding="utf-8") as file:
        for row in prepared.rows:
            file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
    about = {k: getattr(prepared, k) for k in ("labels", "sources", "counts")}
    about["base"] = base
    text = json.dumps(about, indent=1, ensure_ascii=False)
    (folder / "dataset.json").write_text(text + "\n", encoding="utf-8")


def load_prepared(folder: Path) -> Prepared:
    """Read what `save_prepared` wrote."""
    about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    with (folder / "prepared.jsonl").open(encoding="utf-8") as file:
        rows = [Row(**json.loads(line)) for line in file]
    return Prepared(rows, about["labels"], about["sources"], about["counts"])


def split_digest(rows: Iterable[Row]) -> str:
    """Digest of a split's content, whatever the files were called."""
    return digest_json([[row.input, row.references] for row in rows])
