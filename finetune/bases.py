"""Base models: bring one into the home folder, checked and fingerprinted.

`python -m finetune.bases add SOURCE`; `finetune.base_sources` says what a source can be. The
model is staged beside its final place, loaded once as the trainer will load it, and only then
moved and recorded.
"""

import argparse
import fcntl
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters import bases
from adapters.bases import Base
from adapters.errors import AdapterError, InvalidInput, InvalidName, StoreFailed, UnsafeFile
from adapters.names import check_name
from adapters.registry import Registry
from finetune.base_sources import (
    Source,
    context_length,
    convert_gguf,
    copy_model,
    gguf_parameters,
    locate,
    normalise,
    quiet_transformers,
)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

Progress = Callable[[str], None]


class NotEnoughDisk(StoreFailed):
    """The home folder's disk can't hold the model."""

    code = "not_enough_disk"


def add_base(
    source: str,
    registry: Registry,
    name: str | None = None,
    *,
    default: bool = False,
    progress: Progress = lambda _: None,
) -> Base:
    """Add a base model to the registry; adding the same content again changes nothing.

    Raises:
        InvalidInput: the source is missing, no causal language model, or lacks a part.
        UnsafeFile: its weights are pickles, or it wants code of its own to be run.
        InvalidName: the name is not valid, or taken by another content.
        NotEnoughDisk: says how much is needed.
    """
    progress("finding the model")
    found = locate(source)
    name = check_name(found.name if name is None else name)
    folder = registry.home.bases
    folder.mkdir(parents=True, exist_ok=True)
    if not found.is_gguf:
        check_folder(found.path)
    check_disk(found, folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adding-") as scratch:
        staged = Path(scratch) / name
        if found.is_gguf:
            progress("converting from GGUF")
            convert_gguf(found.path, staged)
        else:
            progress("copying")
            copy_model(found.path, staged)
        normalise(staged)
        progress("checking: tokenizer, chat template and one pass through the model")
        parameters = check_model(staged)
        progress("fingerprinting")
        base = describe(staged, folder / name, found.label, parameters)
        progress("recording")
        _keep(staged, base, registry, default=default)
    return base


# What may come in


def check_folder(folder: Path) -> None:
    """Refuse early what can't become a base.

    Raises:
        InvalidInput, UnsafeFile.
    """
    config = bases.read_config(folder)
    architecture = _architecture(config)
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InvalidInput(
            f"{architecture} does not generate text one token after another",
            hint="give a causal language model (its config names …ForCausalLM)",
            param="source",
        )
    if "auto_map" in config:
        raise UnsafeFile(
            f"{architecture} wants its own Python code to be run",
            hint="give a model of an architecture that transformers has",
            param="source",
        )
    if not bases.weight_files(folder):
        pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        if pickles:
            raise UnsafeFile(
                f"its weights are pickles ({pickles[0]}), which can run code when loaded",
                hint="convert them where you trust them: save_pretrained writes safetensors",
                param="source",
            )
    bases.light_fingerprint(folder)  # tokenizer and chat template are there


def check_disk(source: Source, folder: Path) -> None:
    """Raises NotEnoughDisk unless the model fits with a tenth to spare."""
    if source.is_gguf:
        needed = gguf_parameters(source.path) * 4
    else:
        needed = sum(path.stat().st_size for path in bases.weight_files(source.path))
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise NotEnoughDisk(
            f"the model takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free at {folder}",
            hint="free some space, or set MODISTE_HOME to another disk",
        )


def _architecture(config: dict[str, Any]) -> str:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InvalidInput("config.json names no architecture", param="source")
    return str(architectures[0])


# Does it work


def check_model(folder: Path) -> int:
    """Load the folder as the trainer will, and run one pass; returns the number of parameters.

    Raises:
        InvalidInput: a part is missing or does not fit the others.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bases.light_fingerprint(folder)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype="auto", output_loading_info=True
            )
    except Exception as error:
        raise InvalidInput(f"the model does not load: {error}", param="source") from error
    if missing := sorted(loading["missing_keys"]):
        raise InvalidInput(
            f"missing weights: {len(missing)}, the first is {missing[0]}", param="source"
        )
    if not tokenizer.is_fast:
        raise InvalidInput("it has no fast tokenizer", hint="add tokenizer.json", param="source")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise InvalidInput("the tokenizer has more tokens than the model", param="source")
    messages = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(ids, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(inputs).logits  # [1, T, V]
    if not bool(torch.isfinite(logits).all()):
        raise InvalidInput("the model's output is not finite", param="source")
    return int(model.num_parameters())


def describe(staged: Path, final: Path, label: str, parameters: int) -> Base:
    """The record of a staged base that will lie at `final`."""
    config = bases.read_config(staged)
    architecture = _architecture(config)
    lora = architecture in bases.lora_architectures()
    dtype = str(config.get("dtype", config.get("torch_dtype", "float32")))
    return Base(
        name=final.name, path=final, source=label,
        ref=bases.fingerprint(staged, final.name, dtype),
        context_length=context_length(config), architecture=architecture, parameters=parameters,
        lora=lora, lora_reason="" if lora else f"vLLM does not serve {architecture} with LoRA",
        tasks=["generate", "translate", "answer", "classify"],
    )  # fmt: skip


def _keep(staged: Path, base: Base, registry: Registry, *, default: bool) -> None:
    """Move the staged folder to its place and record it: a folder in place is recorded."""
    known = {known.name: known for known in registry.bases()}.get(base.name)
    if known is not None and (differences := known.ref.differences(base.ref)):
        raise InvalidName(
            f"base {base.name!r} exists with another {', '.join(differences)}",
            hint="add it under another name: --name",
            param="name",
        )
    if known is None or not known.path.is_dir():
        shutil.rmtree(base.path, ignore_errors=True)  # nothing recorded it
        staged.rename(base.path)
    try:
        registry.add_base(base, default=default)
    except BaseException:
        if known is None:
            shutil.rmtree(base.path, ignore_errors=True)
        raise


def present(registry: Registry, name: str) -> Base | None:
    """The base of a name, where its folder is in this home and fits its record.

    Weights are not read: the folder came into place whole.

    Raises:
        InvalidInput: its folder was changed.
    """
    known = {known.name: known for known in registry.bases()}.get(name)
    if known is None or not known.path.is_dir():
        return None
    found = bases.light_fingerprint(known.path)
    if changed := [part for part, digest in found.items() if getattr(known.ref, part) != digest]:
        raise InvalidInput(
            f"base {name} in {known.path} has another {', '.join(changed)} than when it was added",
            hint="restore it, or add it under another name", param="name",
        )  # fmt: skip
    return known


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time adds to a home folder, such as several that start on one volume."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".adding.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="modiste base", description=__doc__)
    add = parser.add_subparsers(required=True).add_parser("add", help="add a base model")
    add.add_argument("source", help="a folder, a .gguf file, package:NAME, or OWNER/MODEL")
    add.add_argument("--name", help="the base's name (default: from the source)")
    add.add_argument("--home", type=Path, help="the home folder (default: MODISTE_HOME)")
    add.add_argument("--default", action="store_true", help="make it the default base")
    add.add_argument(
        "--if-missing", action="store_true",
        help="do nothing where the home folder has a base of this --name; others that add wait",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def progress(step: str) -> None:
        print(f"base: {time.monotonic() - started:6.1f} s  {step}", flush=True)

    try:
        if options.if_missing and options.name is None:
            raise InvalidInput("--if-missing needs the base's --name", param="name")
        registry = Registry.open(options.home)
        with alone(registry.home.bases):
            if options.if_missing and (known := present(registry, options.name)) is not None:
                print(f"base: {known.name} is there")
                return 0
            base = add_base(
                options.source, registry, options.name, default=options.default, progress=progress
            )
    except AdapterError as error:
        print(f"base: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  remedy: {error.hint}", file=sys.stderr)
        return 1 if type(error) is StoreFailed else 2
    except KeyboardInterrupt:
        return 130
    lora = "serves adapters" if base.lora else base.lora_reason
    size = f"{base.parameters / 1e6:.0f} M parameters, {base.context_length} tokens of context"
    print(f"base: {time.monotonic() - started:6.1f} s  {base.name} is ready: {size}, {lora}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
