"""Write adapters/lora_architectures.txt: the text models that vLLM serves with LoRA.

Reads the source of the installed vLLM without importing it: the tables of its model registry
name a class for each architecture, and a class serves LoRA when SupportsLoRA is among its
bases. Run it after the lock takes another vLLM: `.venv/bin/python scripts/lora_architectures.py`.
"""

import ast
import importlib.util
import sys
from functools import cache
from pathlib import Path

TABLES = {"_TEXT_GENERATION_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS"}
TARGET = Path(__file__).resolve().parent.parent / "adapters" / "lora_architectures.txt"


def models_folder() -> Path | None:
    """The folder of vLLM's model classes, or None where vLLM is not installed."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model_executor" / "models"


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def read_tables(folder: Path) -> dict[str, tuple[str, str]]:
    """Architecture to (module, class), as vLLM's registry has it."""
    found: dict[str, tuple[str, str]] = {}
    for node in parse(folder / "registry.py").body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id in TABLES and isinstance(value, ast.Dict):
            for key, entry in zip(value.keys, value.values, strict=True):
                module, name = ast.literal_eval(entry)
                found[ast.literal_eval(key)] = (module, name)  # type: ignore[arg-type]
    return found


def module_file(folder: Path, module: str) -> Path | None:
    path = folder.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_from(folder: Path, path: Path, name: str) -> Path | None:
    """The file among the models that `path` imports `name` from."""
    package = "vllm.model_executor.models"
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if not any(name == (alias.asname or alias.name) for alias in node.names):
            continue
        if node.level == 0 and node.module.startswith(package):
            return module_file(folder, node.module.removeprefix(package).strip("."))
        if node.level > 0:
            return module_file(path.parents[node.level - 1], node.module)
    return None


def supports_lora(folder: Path, path: Path, name: str) -> bool:
    """Whether SupportsLoRA is among the bases of a class, or of their bases."""
    if name == "SupportsLoRA":
        return True
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [base for base in node.bases if isinstance(base, ast.Name)]
            return any(supports_lora(folder, path, base.id) for base in bases)
    source = imported_from(folder, path, name)
    return source is not None and source != path and supports_lora(folder, source, name)


def lora_architectures(folder: Path) -> list[str]:
    """The architectures served with LoRA, sorted.

    Raises:
        ValueError: the registry's tables were not found where they used to be.
    """
    tables = read_tables(folder)
    if not tables:
        raise ValueError(f"no table of {', '.join(sorted(TABLES))} in {folder / 'registry.py'}")
    found = []
    for architecture, (module, name) in tables.items():
        path = module_file(folder, module)
        if path is not None and supports_lora(folder, path, name):
            found.append(architecture)
    return sorted(found)


def main() -> int:
    folder = models_folder()
    if folder is None:
        print("vLLM is not installed: run `make setup`", file=sys.stderr)
        return 1
    TARGET.write_text("\n".join(lora_architectures(folder)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
