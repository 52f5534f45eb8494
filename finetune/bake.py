"""`python -m finetune.bake NAME@N TARGET`: write an adapter into its base's weights.

The target is a checkpoint that an engine serves alone. It is staged beside its place, loaded
again, and moved there only when it reproduces the version's probe.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import bases
from adapters.bases import Base
from adapters.digests import sync_file
from adapters.errors import IncompatibleAdapter, InvalidInput, InvalidName, ProofFailed, StoreFailed
from adapters.names import check_name
from adapters.probe import Probe, Proof, judge
from adapters.registry import Registry, Version
from finetune.base_sources import COPIED
from finetune.command import Progress, run_command

_CARD = """---
base_model: {base}
library_name: transformers
---

# {version}

The base model {base} with the adapter {version} in its weights, written by Modiste.

- digest of the version: `{digest}`
- task: {task}
- weights: {dtype}; a changed weight is summed in float32 and rounded once to {dtype}
- its log-probabilities differ from the version's probe by at most {error:.2g} nats
  ({tolerance:g} are allowed for {dtype})
"""


@dataclass(frozen=True, slots=True)
class Baked:
    """A checkpoint, and the base that was recorded of it if one was asked for."""

    version: Version
    target: Path
    proof: Proof
    base: Base | None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)

    def work(progress: Progress) -> tuple[str, dict[str, Any]]:
        registry, target = Registry.open(options.home), options.target.expanduser().absolute()
        baked = bake(registry, options.version, target, options.add_base, progress)
        version, added = baked.version, baked.base
        text = f"{version.reference} {version.digest} -> {target}"
        about = {
            "version": version.reference, "digest": version.digest, "target": str(target),
            "error_nats": baked.proof.error, "base": None if added is None else added.name,
        }  # fmt: skip
        return text if added is None else f"{text}, base {added.name}", about

    return run_command("bake", work, as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="modiste adapters bake",
        description="Write one adapter into its base's weights: a checkpoint that is served alone.",
        epilog="The checkpoint has its base's dtype. A weight is summed in float32 and rounded "
        "once; in bfloat16 that is up to 0.4 % of it, so a weak adapter may be lost. The "
        "checkpoint is loaded again and must reproduce the version's probe, else nothing is kept.",
    )
    made.add_argument("version", metavar="NAME@N", help="the version")
    made.add_argument("target", type=Path, help="the folder to write: new, or empty")
    made.add_argument("--add-base", metavar="NAME", help="also make it a base model of this home")
    made.add_argument("--home", type=Path, help="the home folder (default: MODISTE_HOME)")
    made.add_argument("--json", action="store_true", help="print JSON on stdout")
    return made


def bake(
    registry: Registry, reference: str, target: Path, add_as: str | None, progress: Progress
) -> Baked:
    """Write the checkpoint, prove it, and perhaps record it as a base.

    Raises:
        InvalidInput: the target is not new or empty, or the base's name is not valid or taken.
        NotFound, Quarantined, Removed, DigestMismatch: the version is not one to use.
        IncompatibleAdapter: the base is not here, or its weights are quantised.
        ProofFailed: the checkpoint does not reproduce the probe; nothing was written.
        StoreFailed: the disk can't take it; nothing was written.
    """
    check_target(target)
    progress("checking the version")
    version = registry.verified(reference)
    if add_as is not None:
        _check_free(registry, check_name(add_as, "add_base"), version)

    from finetune.lora import base_of  # torch takes seconds to import

    base = base_of(registry, version)
    _check_plain(base)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bake-") as beside:
            staged = Path(beside) / target.name
            progress(f"adding {version.reference} to the weights of {base.name}")
            write_checkpoint(base, version, staged)
            progress("loading it again and asking the probe")
            proof = prove(staged, version, base.ref.dtype)
            _describe(staged, version, base, proof)
            added = None
            if add_as is not None:
                progress(f"adding it as base {add_as}")
                added = _add_base(registry, staged, add_as, version)
            for path in [*staged.iterdir(), staged]:
                sync_file(path)
            staged.rename(target)  # takes the place of an empty folder
            sync_file(target.parent)
    except OSError as error:
        raise StoreFailed(
            f"{target} can't be written: {error.strerror or error}",
            hint="free disk space or check the folder's owner, then bake again",
        ) from error
    return Baked(version, target, proof, added)


def check_target(target: Path) -> None:
    """Raises InvalidInput unless the target is new or an empty folder, in a folder that exists."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InvalidInput(f"{target} is no folder", hint="give another target", param="target")
    if target.is_dir() and any(target.iterdir()):
        raise InvalidInput(
            f"{target} is not empty", hint="empty it, or give another target", param="target"
        )
    if not target.parent.is_dir():
        raise InvalidInput(
            f"there is no folder {target.parent}", hint="make it first", param="target"
        )


def _check_free(registry: Registry, name: str, version: Version) -> None:
    if any(base.name == name and base.source != _source(version) for base in registry.bases()):
        raise InvalidName(
            f"base {name!r} exists", hint="give another name: --add-base", param="add_base"
        )


def _check_plain(base: Base) -> None:
    if "quantization_config" in bases.read_config(base.path):
        raise IncompatibleAdapter(
            f"the weights of base {base.name} are quantised, and sums would not fit in them",
            hint="serve the adapter on its base, or train it on the base before quantisation",
            param="base",
        )


def write_checkpoint(base: Base, version: Version, folder: Path) -> None:
    """Write base plus adapter in the base's dtype; all other files are the base's own, as they are.

    Raises:
        IncompatibleAdapter: the adapter does not fit the base.
    """
    import torch

    from finetune.base_model import load_model
    from finetune.lora import Lora
    from finetune.plan import cores

    torch.set_num_threads(cores())
    lora = Lora.of(version)
    model = load_model(base.path, base.ref.dtype, "cpu")
    lora.check(model, base)
    with torch.no_grad():
        for layer in lora.layers():
            weight = model.get_submodule(layer).weight  # [out, in]
            b, a = lora.matrices(layer)
            weight.copy_(weight.float() + b @ a)  # summed in float32, rounded once
    model.save_pretrained(str(folder), safe_serialization=True)
    for pattern in COPIED:
        for path in sorted(base.path.glob(pattern)):
            if path.is_file() and ".safetensors" not in path.name:
                shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner can read


def prove(folder: Path, version: Version, dtype: str) -> Proof:
    """Load a checkpoint from its files alone and compare it with the version's probe.

    Args:
        dtype: of its weights; decides the tolerance.

    Raises:
        ProofFailed: says by how much it differs.
    """
    import torch

    from finetune.base_model import load_model
    from finetune.publish import measure

    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe = Probe.load(version.folder / "probe.json")
    model = load_model(folder, probe.dtype, device)
    proof = judge(probe, measure(model, probe), dtype)
    if not proof.proved:
        raise ProofFailed(
            f"{version.reference} written into its base's {dtype} weights does not reproduce its "
            f"probe: {proof.reason}",
            hint="serve the adapter on its base; where rounding loses it, use a base in float32",
        )
    return proof


def _describe(folder: Path, version: Version, base: Base, proof: Proof) -> None:
    """modiste.json and README.md: what the checkpoint was made from."""
    from finetune.publish import package_versions

    made_from = {
        "version": version.reference, "digest": version.digest,
        "base": base.ref.model_dump(mode="json"), "dtype": base.ref.dtype,
        "task": version.manifest.task, "languages": version.manifest.languages,
        "labels": version.manifest.labels,
        "prompt": version.manifest.prompt.model_dump(mode="json"),
        "probe": {"error_nats": proof.error, "tolerance_nats": proof.tolerance},
        "packages": package_versions(),
    }  # fmt: skip
    (folder / "modiste.json").write_text(
        json.dumps(made_from, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    card = _CARD.format(
        base=base.name, version=version.reference, digest=version.digest,
        task=version.manifest.task, dtype=base.ref.dtype, error=proof.error,
        tolerance=proof.tolerance,
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")


def _source(version: Version) -> str:
    return f"baked from {version.reference} {version.digest}"


def _add_base(registry: Registry, folder: Path, name: str, version: Version) -> Base:
    from finetune.bases import add_base

    added = add_base(str(folder), registry, name)
    known = added.model_copy(update={"source": _source(version)})
    registry.add_base(known)
    return known


if __name__ == "__main__":
    sys.exit(main())
