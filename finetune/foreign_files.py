"""What the files of another trainer's adapter say, before any model is loaded."""

import json
from pathlib import Path
from typing import Any

from adapters.bases import TOKENIZER_FILES, Base
from adapters.compatibility import check_config, is_named, module_of, tensor_shapes
from adapters.digests import digest_file
from adapters.errors import IncompatibleAdapter, InvalidInput, UnsafeFile

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def refuse_pickles(folder: Path) -> None:
    """Raises UnsafeFile when a folder has weights, but none that are safe to read."""
    if not (folder / WEIGHTS).exists():
        for path in sorted(folder.glob("adapter_model.*")):
            raise UnsafeFile(
                f"{path.name} may be a pickle, which can run code when read",
                hint=f"save the adapter as {WEIGHTS}: peft's save_pretrained does",
            )


def read_config(path: Path) -> dict[str, Any]:
    """peft's adapter_config.json, of a LoRA that the engine serves.

    Raises:
        IncompatibleAdapter: names the key, its value and the remedy.
        InvalidInput: no JSON object.
    """
    config = _json(path)
    check_config(config)
    return config


def name_targets(path: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """Let target_modules name the modules that have tensors, and no others.

    peft keeps what the trainer asked for: a pattern, or names that the base doesn't have. Servers
    compare the names with the modules that they adapt, so the file is written again where needed.

    Args:
        path: of adapter_config.json; `config` is its content.
        shapes: of the tensors, by name.
    """
    modules, targets = {module_of(tensor) for tensor in shapes}, config["target_modules"]
    if not isinstance(targets, str):
        covered = {m for m in modules if any(is_named(m, target) for target in targets)}
        if covered == modules and all(any(is_named(m, t) for m in modules) for t in targets):
            return
    config["target_modules"] = sorted({module.rpartition(".")[2] for module in modules})
    path.write_text(json.dumps(config, indent=2) + "\n")


def check_revision(config: dict[str, Any], named_base: str | None) -> str:
    """A warning when the adapter was trained on a certain revision of its base; else empty.

    Raises:
        IncompatibleAdapter: and nobody said which base here is that revision.
    """
    revision = config.get("revision")
    if revision in (None, "", "main"):
        return ""
    base = config.get("base_model_name_or_path")
    if named_base is None:
        raise IncompatibleAdapter(
            f"adapter_config revision={revision!r}: it was trained on that revision of {base}",
            hint="add that revision as a base model, and name it: --base NAME",
            param="base",
        )
    return f"warning: it was trained on revision {revision} of {base}; make sure {named_base} is it"


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
