"""What is read of another trainer's files before any model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from adapters.bases import Base
from adapters.errors import IncompatibleAdapter, InvalidInput
from finetune.foreign_files import check_tokenizer, read_config
from tests.made import Recipe, random_adapter


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    """A LoRA as peft itself saves it."""
    random_adapter(base, Recipe("x")).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("modules_to_save", ["lm_head"]), ("r", None), ("r", "8"), ("r", True),
        ("lora_alpha", None), ("target_modules", None), ("peft_type", "LOHA"),
        ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"),
        ("init_lora_weights", "pissa_niter_4"), ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [1]), ("target_parameters", ["experts"]),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused_by_its_key(folder: Path, key: str, value: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    with pytest.raises(IncompatibleAdapter) as caught:
        read_config(path)
    assert key in caught.value.message
    assert caught.value.hint


def test_the_bases_own_tokenizer_may_lie_beside_it(
    folder: Path, base: Base, tokenizer: Any
) -> None:
    check_tokenizer(folder, base)  # none at all
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())))  # the same in other bytes
    number = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": number}))

    assert path.read_bytes() != (base.path / "tokenizer.json").read_bytes()
    check_tokenizer(folder, base)


def _add_token(folder: Path, base: Base) -> None:
    made = Tokenizer.from_file(str(base.path / "tokenizer.json"))
    made.add_tokens(["<new>"])
    made.save(str(folder / "tokenizer.json"))


def _few_tokens(folder: Path, base: Base) -> None:
    known = Tokenizer.from_file(str(base.path / "tokenizer.json")).get_vocab()
    few = {token: number for token, number in known.items() if number < 10}
    Tokenizer(models.WordLevel(few)).save(str(folder / "tokenizer.json"))


def _write(name: str, content: Any) -> Callable[[Path, Base], None]:
    def write(folder: Path, _: Base) -> None:
        (folder / name).write_text(json.dumps(content))

    return write


OTHERS = [
    (_add_token, "adds tokens: 1, such as '<new>'"),
    (_few_tokens, "lacks tokens"),
    (_write("added_tokens.json", {"<new>": 500}), "adds tokens: 1, such as '<new>'"),
    (_write("added_tokens.json", {"<|im_end|>": 77}), "numbers tokens in another way"),
    (_write("vocab.json", {"<new>": 3}), "adds tokens"),
    (
        _write("tokenizer_config.json", {"added_tokens_decoder": {"500": {"content": "<new>"}}}),
        "adds tokens",
    ),
    (_write("tokenizer.model", "another"), "tokenizer.model differs"),
]


@pytest.mark.parametrize(("spoil", "words"), OTHERS)
def test_another_vocabulary_is_refused(folder: Path, base: Base, spoil: Any, words: str) -> None:
    spoil(folder, base)

    with pytest.raises(IncompatibleAdapter) as caught:
        check_tokenizer(folder, base)
    assert words in str(caught.value)
    assert "--base NAME" in caught.value.hint


def test_an_unreadable_tokenizer_is_told(folder: Path, base: Base) -> None:
    (folder / "tokenizer.json").write_text("{}")

    with pytest.raises(InvalidInput, match=r"tokenizer\.json can't be read"):
        check_tokenizer(folder, base)
