"""Where versions lie: one folder a version, addressed by its digest.

    STORE/NAME/<64 hex digits>/manifest.json  adapter_model.safetensors  …

A version is staged beside its place, synced and renamed; its manifest is written
last, so a folder with a manifest is whole.
"""

import json
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.compatibility import check_config, check_tensors
from adapters.digests import digest_file, sync_file
from adapters.errors import (
    DigestMismatch,
    IncompatibleAdapter,
    InvalidManifest,
    StoreFailed,
    UnsafeFile,
)
from adapters.manifest import DECISIVE, Draft, Manifest, content_digest, parse_manifest
from adapters.names import check_name
from adapters.probe import Probe
from adapters.scratch import held_folder

if TYPE_CHECKING:
    from adapters.cached import Cached
    from adapters.remote import Remote

MANIFEST = "manifest.json"
STAGING = ".staging"
ASIDE = "aside-"
"""Begins the name of a staged folder that was moved there to be deleted."""
EXTRA_FILES = frozenset(
    {"report.json", "predictions.jsonl", "metrics.jsonl", "loss.png", "preflight.json",
     "recipe.yaml", "report.html"}
)  # fmt: skip
VERSION_FILES = frozenset({*DECISIVE, *EXTRA_FILES})


class Store:
    """Versions in a local folder."""

    remote: "Remote | None" = None
    """Where versions really lie, when `root` is only their cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / STAGING

    def folder(self, name: str, digest: str) -> Path:
        """Where a version lies or would lie; the name is checked, never trusted."""
        return self.root / check_name(name) / digest.removeprefix("sha256:")

    @contextmanager
    def staged(self, source: Path, draft: Draft) -> Iterator["Staged"]:
        """Copy a trainer's folder into the store, not yet visible.

        Raises:
            UnsafeFile: pickles, links or files that a version doesn't have.
            IncompatibleAdapter: peft features that the engine doesn't serve.
            InvalidManifest: the draft is about another probe.
            StoreFailed: the disk is full or the store can't be written.
        """
        files = _checked_files(source)
        check_config(draft.peft)
        check_tensors(source / "adapter_model.safetensors", draft.peft)
        check_draft(source, draft)
        with self.scratch() as folder, self.writing():
            for path in files:
                shutil.copyfile(path, folder / path.name)
                sync_file(folder / path.name)
            digests = {path.name: digest_file(folder / path.name) for path in files}
            size = sum((folder / path.name).stat().st_size for path in files)
            yield Staged(self, folder, draft, digests, size)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder in the store for as long as the block runs; a collection leaves it alone.

        Raises:
            StoreFailed: the disk is full or the store can't be written.
        """
        with ExitStack() as stack:
            with self.writing():
                self.staging.mkdir(parents=True, exist_ok=True)
                folder = stack.enter_context(held_folder(self.staging))
            yield folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What the disk can't do is a `StoreFailed`."""
        try:
            yield
        except OSError as error:
            raise StoreFailed(
                f"the store {self.root} can't be written: {error.strerror or error}",
                hint="free disk space or check the folder's owner, then try again",
            ) from error

    def manifest(self, name: str, digest: str) -> Manifest:
        """Read a version's manifest.

        Raises:
            StoreFailed: the folder or its manifest is missing.
            InvalidManifest: it was altered.
        """
        path = self.folder(name, digest) / MANIFEST
        try:
            text = path.read_bytes()
        except OSError as error:
            raise StoreFailed(
                f"{name} {digest}: no manifest in the store ({error.strerror})",
                hint="restore the store from a backup, or publish the version again",
            ) from error
        return self.parse(text, name, digest)

    def parse(self, text: bytes, name: str, digest: str) -> Manifest:
        """Read a manifest that shall be of this version.

        Raises:
            InvalidManifest, DigestMismatch: it was altered, or is another version's.
        """
        manifest = parse_manifest(text, f"{name} {digest}")
        if (manifest.name, manifest.digest) != (name, digest):
            raise DigestMismatch(
                f"the folder of {name} {digest} holds {manifest.name} {manifest.digest}",
                hint="restore the store from a backup",
            )
        return manifest

    def verify(self, manifest: Manifest) -> None:
        """Check every file of a version against its digest.

        Raises:
            StoreFailed: a file can't be read.
            DigestMismatch: a file was cut off or altered.
        """
        folder = self.folder(manifest.name, manifest.digest)
        for name, digest in manifest.files.items():
            try:
                found = digest_file(folder / name)
            except OSError as error:
                raise StoreFailed(
                    f"{manifest.name}@{manifest.version}: {name}: {error.strerror}",
                    hint="check that the store is mounted; restore the version from a backup",
                ) from error
            if found != digest:
                raise DigestMismatch(
                    f"{manifest.name}@{manifest.version}: {name} was altered",
                    hint="restore the version from a backup, or publish it again",
                )

    @contextmanager
    def held(self, manifest: Manifest) -> Iterator[Path]:
        """A version's folder, which stays while the block runs."""
        yield self.folder(manifest.name, manifest.digest)

    def missing(self, manifest: Manifest) -> int:  # noqa: ARG002
        """Bytes of a version that are not here."""
        return 0

    def cached(self) -> "list[Cached]":
        """Versions here that can be had again from elsewhere, the longest unused first."""
        return []

    def drop(self, cached: "Cached", *, removed: bool) -> int:  # noqa: ARG002
        """Let go of a version here; returns the bytes that went."""
        return 0

    def erase(self, name: str, digest: str) -> None:
        """Remove every file of a version, its manifest too; one that is gone is fine.

        Raises:
            StoreFailed, OSError: the rest is left for the next call.
        """
        folder = self.folder(name, digest)
        if folder.is_dir():
            self.staging.mkdir(exist_ok=True)
            aside = Path(tempfile.mkdtemp(dir=self.staging, prefix=ASIDE))
            folder.rename(aside / folder.name)
            shutil.rmtree(aside)
        with suppress(OSError):  # it has other versions
            folder.parent.rmdir()

    def upload(self, staged: "Staged") -> None:
        """Copy a publication's files elsewhere, where that is needed."""

    def complete(self, folder: Path, manifest: Manifest) -> None:
        """Make the version whole elsewhere, where that is needed."""


class Staged:
    """A copy in the store that waits for its number."""

    def __init__(
        self, store: Store, folder: Path, draft: Draft, files: dict[str, str], size: int
    ) -> None:
        self.store, self.folder, self.draft, self.files, self.size = (
            store, folder, draft, files, size,
        )  # fmt: skip
        self.digest = content_digest(draft, files)

    def upload(self) -> None:
        """Bring the files where they will be served from; takes as long as they are large.

        Raises:
            StoreFailed: nothing was published.
        """
        self.store.upload(self)

    def finish(self, manifest: Manifest) -> Path:
        """Write the manifest, sync, and bring all into place; returns the version's folder."""
        path = self.folder / MANIFEST
        path.write_text(manifest.model_dump_json(indent=1) + "\n")
        sync_file(path)
        sync_file(self.folder)
        self.store.complete(self.folder, manifest)
        place = self.store.folder(manifest.name, manifest.digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():  # of a removed or quarantined version, or left by a crash
            self._fill(place)
        else:
            self.folder.rename(place)
        sync_file(place.parent)
        return place

    def _fill(self, place: Path) -> None:
        """File by file, the manifest last: at no time is a version that is listed without one."""
        names = {path.name for path in self.folder.iterdir()}
        for name in [*sorted(names - {MANIFEST}), MANIFEST]:
            (self.folder / name).replace(place / name)
            sync_file(place)
        for path in place.iterdir():
            if path.name not in names:
                path.unlink()


def _checked_files(source: Path) -> list[Path]:
    found = {path.name: path for path in sorted(source.iterdir())}
    for name, path in found.items():
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise UnsafeFile(f"{name} is not a plain file", hint="remove links and folders")
        if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}:
            raise UnsafeFile(
                f"{name} is a pickle, which can run code when read",
                hint="save the adapter as safetensors (peft's save_pretrained does)",
            )
        if name not in DECISIVE and name not in EXTRA_FILES:
            raise UnsafeFile(
                f"{name} is not a file of a version",
                hint=f"a version has {', '.join([*DECISIVE, *sorted(EXTRA_FILES)])}",
            )
    if missing := [name for name in DECISIVE if name not in found]:
        raise IncompatibleAdapter(f"{source.name} lacks {', '.join(missing)}")
    return list(found.values())


def check_draft(source: Path, draft: Draft) -> None:
    """Check that a draft speaks of the files beside it.

    Raises:
        IncompatibleAdapter: another adapter_config.json.
        InvalidManifest: another probe, or none that can be read.
    """
    try:
        config: dict[str, object] = json.loads((source / "adapter_config.json").read_bytes())
    except ValueError as error:
        raise IncompatibleAdapter(
            f"adapter_config.json is not JSON: {error}", hint="save the adapter again"
        ) from error
    if config != draft.peft:
        differing = sorted(k for k in config | draft.peft if config.get(k) != draft.peft.get(k))
        raise IncompatibleAdapter(
            f"adapter_config.json differs from the draft's peft in {', '.join(differing)}",
            hint="make the draft from the adapter_config.json that is published",
        )
    if Probe.load(source / "probe.json").digest() != draft.probe:
        raise InvalidManifest(
            "probe.json is not the probe whose digest the draft has",
            hint="make the draft from the probe.json that is published",
        )
