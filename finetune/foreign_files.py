"""What the files of another trainer's adapter say, before any model is loaded."""

import json
from pathlib import Path
from typing import Any

from adapters.bases import TOKENIZER_FILES, Base
from adapters.digests import digest_file
from adapters.errors import IncompatibleAdapter, InvalidInput, UnsafeFile
from adapters.store import check_adapter_config, tensor_shapes

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

_VARIANTS = (
    "alora_invocation_tokens", "layer_replication", "use_qalora", "use_bdlora",
    "target_parameters", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
"""Options of peft that make something else of the matrices than B times A."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initial values that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change it."""


def refuse_pickles(folder: Path) -> None:
    """Raises UnsafeFile when a folder has weights, but none that are safe to read."""
    if not (folder / WEIGHTS).exists():
        for path in sorted(folder.glob("adapter_model.*")):
            raise UnsafeFile(
                f"{path.name} may be a pickle, which can run code when read",
                hint=f"save the adapter as {WEIGHTS}: peft's save_pretrained does",
            )


def read_config(path: Path) -> dict[str, Any]:
    """peft's adapter_config.json, of a plain LoRA that the engine serves.

    Raises:
        IncompatibleAdapter: names the key, its value and the remedy.
        InvalidInput: no JSON object.
    """
    config = _json(path)
    check_adapter_config(config)
    for key, kind in (("r", int), ("lora_alpha", int | float), ("target_modules", list | str)):
        if not isinstance(config.get(key), kind) or isinstance(config[key], bool):
            raise IncompatibleAdapter(
                f"adapter_config {key}={config.get(key)!r} is not what a LoRA has",
                hint="save the adapter again with peft's save_pretrained",
            )
    for key in _VARIANTS:
        if config.get(key):
            raise IncompatibleAdapter(
                f"adapter_config {key}={config[key]!r} is not served by the engine",
                hint=f"train without {key}, or merge the adapter and add the result as a base",
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise IncompatibleAdapter(
            f"adapter_config init_lora_weights={start!r} goes with a changed base model",
            hint="convert it: peft's save_pretrained(path_initial_model_for_weight_conversion=…)",
        )
    return config


def matrix_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of a LoRA's tensors by name.

    Raises:
        IncompatibleAdapter: not a whole safetensors file, or not of matrices.
    """
    shapes = tensor_shapes(path)
    for name, shape in shapes.items():
        if len(shape) != 2 or 0 in shape:
            raise IncompatibleAdapter(
                f"{name} has shape {shape}, which is no matrix",
                hint="gather the parts before saving, as with DeepSpeed ZeRO-3 and FSDP",
            )
    return shapes


def check_tokenizer(folder: Path, base: Base) -> None:
    """Compare the vocabulary saved beside an adapter, if any, with the base's.

    Raises:
        IncompatibleAdapter: tokens were added, or are numbered in another way.
        InvalidInput: unreadable.
    """
    there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    theirs, whole = _added_tokens(folder), False
    if not all(_same(folder / name, base.path / name) for name in there):
        whole = "tokenizer.json" in there
        if not whole:
            raise IncompatibleAdapter(
                f"tokenizer.model differs from that of base {base.name}",
                hint="import it with the base that it was trained on: --base NAME",
            )
        theirs |= _vocabulary(folder / "tokenizer.json")
    elif not there:
        theirs |= _numbers(_json(folder / "vocab.json"), "vocab.json")
    if theirs:
        _compare(theirs, base, whole=whole)


def _compare(theirs: dict[str, int], base: Base, *, whole: bool) -> None:
    """`theirs` is a whole vocabulary, or some tokens of it."""
    from finetune.base_model import load_tokenizer

    ours: dict[str, int] = load_tokenizer(base.path).get_vocab()
    added = [token for token in theirs if token not in ours]
    other = [token for token, number in theirs.items() if ours.get(token, number) != number]
    lacking = [token for token in ours if token not in theirs] if whole else []
    for tokens, problem in (
        (added, "adds tokens"), (other, "numbers tokens in another way"), (lacking, "lacks tokens"),
    ):  # fmt: skip
        if tokens:
            raise IncompatibleAdapter(
                f"against base {base.name}, the tokenizer beside it {problem}: "
                f"{len(tokens)}, such as {', '.join(map(ascii, tokens[:3]))}",
                hint="import it with the base that it was trained on (--base NAME), or train "
                "without adding tokens",
            )


def _same(path: Path, other: Path) -> bool:
    return other.is_file() and digest_file(path) == digest_file(other)


def _vocabulary(path: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        found: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers has no kind of its own
        raise InvalidInput(f"{path.name} can't be read: {error}", param="source") from error
    return found


def _added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that were added after the vocabulary was made, those of the base among them."""
    found = _numbers(_json(folder / "added_tokens.json"), "added_tokens.json")
    decoder = _json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        content = token.get("content") if isinstance(token, dict) else token
        if number.isdecimal() and isinstance(content, str):
            found[content] = int(number)
    return found


def _numbers(content: dict[str, Any], name: str) -> dict[str, int]:
    if not all(isinstance(number, int) for number in content.values()):
        raise InvalidInput(f"{name} does not number tokens", param="source")
    return content


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one when the file is not there."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} is not JSON: {error}", param="source") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{path.name} is not a JSON object", param="source")
    return content
