"""From records to examples, from examples to token ids, and the split in train and test.

Records pass one by one. Examples and rows lie on disk, in temporary files and at last in
`prepared.jsonl`, so that data may be larger than memory.
"""

import dataclasses
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from jinja2 import TemplateError

from adapters.digests import digest_file, digest_json_list
from adapters.errors import InvalidInput
from adapters.prompt import PromptTemplate, Renderer
from finetune.chats import Chat
from finetune.config import Recipe
from finetune.data_config import Data
from finetune.examples import Example, examples_of, label_set
from finetune.files import whole, write_whole
from finetune.preferences import Preference
from finetune.reading import Broken, BrokenData, Reading
from finetune.sources import Source, at_hand, find_files, read_files
from finetune.splits import sample, split_examples
from finetune.spool import Chosen, Spool

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ROWS = "prepared.jsonl"

MANY_ANSWERS = ("generate", "answer")
"""Tasks of which an input may have several right answers, each as good."""


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
    columns: dict[str, str] = field(default_factory=dict)
    """As of its example."""
    rejected_ids: list[int] = field(default_factory=list)
    """[T'] of a preference: the same prompt with the answer that was not preferred."""
    rejected_supervised: list[int] = field(default_factory=list)
    lost: int = 0
    """Tokens of the answers that were cut off."""

    @property
    def longest(self) -> int:
        """Tokens of a preference's longer text, else of the only one."""
        return max(len(self.ids), len(self.rejected_ids))

    def with_rejected(self) -> "Row":
        """Of a preference: the row of the answer that was not preferred."""
        return dataclasses.replace(self, ids=self.rejected_ids, supervised=self.rejected_supervised)

    def to_line(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Self:
        return cls(**json.loads(line))


def spooled(rows: Iterable[Row]) -> Spool[Row]:
    """The rows in a temporary file."""
    spool = Spool(Row.to_line, Row.of_line)
    for row in rows:
        spool.append(row)
    return spool


@dataclass(slots=True)
class Prepared:
    """All rows and what is known about where they came from."""

    rows: Sequence[Row]
    labels: list[str]
    sources: dict[str, dict[str, str]]
    """Split -> file -> digest of its bytes, for the splits that have files of their own."""
    counts: dict[str, int]
    """Broken and skipped records, and rows left out, by reason."""
    _places: dict[Split, "array[int]"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Of each split's rows."""

    @property
    def separate_test(self) -> bool:
        """Whether the held-out examples have files of their own."""
        return "test" in self.sources

    def of(self, split: Split) -> Sequence[Row]:
        if not self._places:
            self._places = {name: array("Q") for name in SPLITS}
            for place, row in enumerate(self.rows):
                self._places[row.split].append(place)
        return Chosen(self.rows, self._places[split])


def prepare(
    recipe: Recipe, renderer: Renderer, context_length: int, *, test_only: bool = False
) -> Prepared:
    """Read, check, split and tokenise all data of a recipe.

    Args:
        test_only: read nothing but `data.test`.

    Raises:
        BrokenData: with every broken line of every file, unless they are to be skipped.
        InvalidInput: files that are missing or of an unknown kind, or one group only.
        StoreFailed: a remote file can't be read.
    """
    reading = Reading()
    given = data_files(recipe.data)
    if test_only:
        given = {"train": [], "test": given["test"]}
    with _at_hand(given) as files:
        labels = _labels(recipe, files["train"])
        examples = _read_splits(recipe, files, labels, reading)
        sources = source_digests(files)
    rows = spooled(_tokenise_all(examples, recipe, renderer, context_length, reading))
    _check_whole(reading, recipe)
    counts = reading.skipped
    counts["broken lines"] = reading.broken_count
    return Prepared(rows, labels, sources, dict(+counts))


def _labels(recipe: Recipe, sources: list[Source]) -> list[str]:
    """The labels; those of the training data take a reading of their own."""
    return label_set(recipe, read_files(sources, Reading(), recipe.data.encoding))


def _read_splits(
    recipe: Recipe, files: dict[Split, list[Source]], labels: list[str], reading: Reading
) -> dict[Split, Sequence[Example]]:
    data = recipe.data
    join = recipe.task in MANY_ANSWERS and recipe.training.method == "supervised"

    def read(split: Split, *, grouped: bool = False) -> Iterator[Example]:
        records = read_files(files[split], reading, data.encoding)
        return examples_of(records, reading, recipe, labels, grouped=grouped)

    parts = split_examples(
        read("train", grouped=True),
        0.0 if "test" in files else data.holdout_fraction,
        data.validation_fraction,
        data.max_examples,
        data.max_test_examples,
        join=join,
    )
    if "validation" in files:
        parts.validation = sample(read("validation"), None, join=join)
    if "test" in files:
        parts.test = sample(read("test"), data.max_test_examples, join=join)
    _check_whole(reading, recipe)
    if data.split_by != "example" and parts.train and not parts.test:
        raise InvalidInput(
            f"all examples have one {data.split_by!r}, so none can be held out",
            hint="set data.split_by to another column, or to example",
            param="data.split_by",
        )
    reading.skipped["examples whose input another group has held out"] += parts.shared
    return {"train": parts.train, "validation": parts.validation, "test": parts.test}


def _check_whole(reading: Reading, recipe: Recipe) -> None:
    if reading.broken and recipe.data.on_broken == "error":
        raise BrokenData(reading)


def _tokenise_all(
    examples: dict[Split, Sequence[Example]],
    recipe: Recipe,
    renderer: Renderer,
    context_length: int,
    reading: Reading,
) -> Iterator[Row]:
    """Rows; what the base or its chat template does not take is noted."""
    max_length = min(recipe.training.max_length, context_length)
    for split, members in examples.items():
        for example in members:
            try:
                row = tokenise(example, split, recipe.template, renderer, max_length)
            except (InvalidInput, TemplateError) as error:
                reading.note(Broken(*_place(example.origin), str(error)))
                continue
            if split == "test" and len(row.prompt_ids) >= context_length:
                reading.skipped["held-out prompts too long for the base"] += 1
                continue
            yield row


def _place(origin: str) -> tuple[str, int]:
    """File and line of an example's origin."""
    found = re.fullmatch(r"(.*?):(\d+)(#.*)?", origin)
    return (found[1], int(found[2])) if found else (origin, 1)


def data_files(data: Data) -> dict[Split, list[Source]]:
    """The files of each split that has files of its own.

    Raises:
        InvalidInput: a file is missing or of an unknown kind.
        StoreFailed: a remote place can't be listed.
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


@contextmanager
def _at_hand(files: dict[Split, list[Source]]) -> Iterator[dict[Split, list[Source]]]:
    with at_hand(source for sources in files.values() for source in sources) as there:
        yield {split: [there[s.name] for s in sources] for split, sources in files.items()}


def source_digests(files: dict[Split, list[Source]]) -> dict[str, dict[str, str]]:
    """Split -> file -> digest of its bytes as they are now; remote ones are fetched for it."""
    with _at_hand(files) as there:
        return {
            split: {s.name: digest_file(s.path) for s in sources if s.path is not None}
            for split, sources in there.items()
        }


def tokenise(
    example: Example, split: Split, template: PromptTemplate, renderer: Renderer, max_length: int
) -> Row:
    """Token ids of one example, cut at the end to `max_length`."""
    rejected: tuple[list[int], list[bool]] = ([], [])
    if isinstance(example.input, Chat):
        chat = example.input
        messages, tools = list(chat.messages), list(chat.tools)
        prompt_ids = renderer.chat_ids(messages[: chat.last], tools)
        ids, says = renderer.conversation(messages, tools)
        references = [renderer.said(messages, chat.last, tools)]
        shown = chat.asked
        if isinstance(chat, Preference):
            rejected = renderer.conversation(chat.rejected_messages, tools)
    else:
        prompt_ids = renderer.prompt_ids(template, example.input)
        said = renderer.completion_ids(example.references[0])
        ids, says = prompt_ids + said, [False] * len(prompt_ids) + [True] * len(said)
        references = list(example.references)
        shown = {k: v for k, v in dataclasses.asdict(example.input).items() if k != "labels"}
    return Row(
        split=split,
        origin=example.origin,
        key=example.key,
        input=shown,
        references=references,
        prompt_ids=prompt_ids,
        ids=ids[:max_length],
        supervised=_spoken(says[:max_length]),
        truncated=max(len(ids), len(rejected[0])) > max_length,
        rejected_ids=rejected[0][:max_length],
        rejected_supervised=_spoken(rejected[1][:max_length]),
        columns=example.columns,
        lost=sum(says[max_length:]) + sum(rejected[1][max_length:]),
    )


def _spoken(says: list[bool]) -> list[int]:
    return [position for position, spoken in enumerate(says) if spoken]


def save_prepared(prepared: Prepared, folder: Path, base: str) -> None:
    """Write `prepared.jsonl` and then `dataset.json`, which marks the pair as whole.

    Args:
        base: fingerprint of the base model whose tokenizer made the ids.
    """
    (folder / "dataset.json").unlink(missing_ok=True)
    # another file, so that whoever reads the one before goes on reading it
    with whole(folder / ROWS) as partial, partial.open("wb") as file:
        file.writelines(row.to_line() for row in prepared.rows)
    about = {k: getattr(prepared, k) for k in ("labels", "sources", "counts")}
    about["base"] = base
    text = json.dumps(about, indent=1, ensure_ascii=False)
    write_whole(folder / "dataset.json", text + "\n")


def load_prepared(folder: Path) -> Prepared:
    """Read what `save_prepared` wrote."""
    about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    rows = Spool.of_lines(folder / ROWS, Row.to_line, Row.of_line)
    return Prepared(rows, about["labels"], about["sources"], about["counts"])


def split_digest(rows: Iterable[Row]) -> str:
    """Digest of a split's content, whatever the files were called."""
    return digest_json_list([row.input, row.references] for row in rows)
