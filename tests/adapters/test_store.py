"""The store: what it refuses, and that nothing is left half-written."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.errors import (
    AdapterError,
    DigestMismatch,
    IncompatibleAdapter,
    InvalidManifest,
    StoreFailed,
    UnsafeFile,
)
from adapters.registry import Registry
from adapters.store import STAGING
from tests.adapters.parcels import A, B, draft, parcel


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "home")


def _refused(registry: Registry, folder: Path, kind: type[AdapterError], word: str) -> None:
    with pytest.raises(kind) as caught:
        registry.publish(folder, draft(folder))
    assert word in str(caught.value)
    assert registry.adapters() == []
    assert [p for p in registry.store.root.rglob("*") if p.is_file()] == []


def _link(folder: Path) -> None:
    (folder / "report.json").symlink_to("/etc/passwd")


SPOILT: list[tuple[Callable[[Path], object], type[AdapterError], str]] = [
    (lambda f: (f / "adapter_model.bin").write_bytes(b"x"), UnsafeFile, "pickle"),
    (_link, UnsafeFile, "plain file"),
    (lambda f: (f / "more").mkdir(), UnsafeFile, "plain file"),
    (lambda f: (f / "run.py").write_text("x"), UnsafeFile, "run.py"),
    (lambda f: (f / "probe.json").unlink(), IncompatibleAdapter, "probe.json"),
    (
        lambda f: save_file(
            {A: np.ones((2, 8)), B: np.ones((8, 2))}, f / "adapter_model.safetensors"
        ),
        IncompatibleAdapter, "rank 2",
    ),
    (
        lambda f: save_file({"lm_head.weight": np.ones((2, 8))}, f / "adapter_model.safetensors"),
        IncompatibleAdapter, "lm_head",
    ),
    (
        lambda f: (f / "adapter_model.safetensors").write_bytes(
            (f / "adapter_model.safetensors").read_bytes()[:-9]
        ),
        IncompatibleAdapter, "safetensors",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "kind", "word"), SPOILT)
def test_a_folder_that_is_not_a_version_is_refused_whole(
    registry: Registry, tmp_path: Path, spoil: Callable[[Path], object],
    kind: type[AdapterError], word: str,
) -> None:  # fmt: skip
    folder = parcel(tmp_path / "p")
    spoil(folder)

    _refused(registry, folder, kind, word)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("modules_to_save", ["lm_head"]), ("bias", "all"),
        ("rank_pattern", {".*": 2}), ("alpha_pattern", {".*": 2}), ("peft_type", "LOHA"),
        ("target_modules", ["q_proj", "lm_head"]), ("trainable_token_indices", [1]),
    ],
)  # fmt: skip
def test_what_the_engine_does_not_serve_is_refused_by_its_key(
    registry: Registry, tmp_path: Path, key: str, value: object
) -> None:
    _refused(registry, parcel(tmp_path / "p", **{key: value}), IncompatibleAdapter, key)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_adapter_whose_b_is_zero_is_refused(
    registry: Registry, tmp_path: Path, dtype: type
) -> None:
    folder = parcel(tmp_path / "p")
    zeros = {A: np.ones((4, 8), dtype), B: np.zeros((8, 4), dtype)}
    save_file(zeros, folder / "adapter_model.safetensors")

    _refused(registry, folder, IncompatibleAdapter, "changes nothing")


def test_a_bfloat16_adapter_is_read_too(registry: Registry, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    folder = parcel(tmp_path / "p")
    path = folder / "adapter_model.safetensors"
    b = torch.zeros(8, 4, dtype=torch.bfloat16)
    save_torch({A: torch.ones(4, 8, dtype=torch.bfloat16), B: b}, path)
    _refused(registry, folder, IncompatibleAdapter, "changes nothing")
    b[3, 3] = 0.01
    save_torch({A: torch.ones(4, 8, dtype=torch.bfloat16), B: b}, path)

    assert registry.publish(folder, draft(folder)).number == 1


def test_a_full_disk_leaves_nothing_behind(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, copied = shutil.copyfile, []

    def full(source: Path, place: Path) -> None:
        copied.append(copy(source, place))
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)

    _refused(registry, parcel(tmp_path / "p"), StoreFailed, "No space left")
    assert list((registry.store.root / STAGING).iterdir()) == []


def test_equal_content_published_again_leaves_no_second_copy(
    registry: Registry, tmp_path: Path
) -> None:
    for folder in (parcel(tmp_path / "one"), parcel(tmp_path / "two")):
        registry.publish(folder, draft(folder))

    assert list((registry.store.root / STAGING).iterdir()) == []
    assert len(list((registry.store.root / "x").iterdir())) == 1


def test_every_file_and_its_folder_are_on_the_disk_before_the_version_is_seen(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        "adapters.store.sync_file",
        lambda path: synced.append("folder" if path.is_dir() else path.name),
    )
    version = registry.publish(folder := parcel(tmp_path / "p"), draft(folder))

    files = [*version.manifest.files]
    assert sorted(synced[:3]) == sorted(files)
    assert synced[3:] == ["manifest.json", "folder", "folder"]  # staged, then its new parent


def test_altered_and_missing_files_are_told_apart(registry: Registry, tmp_path: Path) -> None:
    version = registry.publish(folder := parcel(tmp_path / "p"), draft(folder))
    path = version.folder / "adapter_model.safetensors"
    data = path.read_bytes()
    registry.store.verify(version.manifest)

    path.write_bytes(data[:-1] + b"\x01")
    with pytest.raises(DigestMismatch):
        registry.store.verify(version.manifest)
    path.unlink()
    with pytest.raises(StoreFailed):
        registry.store.verify(version.manifest)


@pytest.mark.parametrize(
    ("key", "value"),
    [("task", "answer"), ("labels", ["a"]), ("digest", "sha256:" + "1" * 64), ("extra", 1)],
)
def test_an_altered_manifest_is_refused(
    registry: Registry, tmp_path: Path, key: str, value: object
) -> None:
    version = registry.publish(folder := parcel(tmp_path / "p"), draft(folder))
    path = version.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    with pytest.raises(InvalidManifest):
        registry.find("x@1")
