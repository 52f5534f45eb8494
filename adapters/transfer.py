"""Versions that travel: out as a folder or a tar, and in again, where nothing is trusted."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from adapters.archive import DEFAULT_LIMITS, shown, unpack, write_tar
from adapters.bases import Base
from adapters.digests import digest_file, sync_file
from adapters.errors import (
    DigestMismatch,
    IncompatibleAdapter,
    InvalidInput,
    InvalidManifest,
    StoreFailed,
    UnsafeFile,
)
from adapters.manifest import Draft, Manifest, parse_manifest
from adapters.names import check_name
from adapters.registry import Registry, Version
from adapters.store import MANIFEST, VERSION_FILES

_COMPRESSED = (".tar.gz", ".tgz")
_OTHER_ARCHIVES = (".zip", ".gz", ".bz2", ".xz", ".zst", ".7z")


# Out


def export(registry: Registry, reference: str, target: Path) -> Version:
    """Write a version to a folder, or to a tar when the target ends with .tar, .tar.gz or .tgz.

    Equal versions give equal bytes. The target appears whole or not at all.

    Raises:
        NotFound: no such version.
        Quarantined, Retired, Removed, DigestMismatch: the version is not one to give away.
        InvalidInput: the target exists, or nothing can be written there.
        StoreFailed: the version can't be read, or the target's disk can't take it.
    """
    version = registry.verified(reference)
    _check_target(target)
    names = sorted({*version.manifest.files, MANIFEST})
    try:
        with (
            registry.store.held(version.manifest) as folder,
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as beside,
        ):
            files = [folder / name for name in names]
            staged = Path(beside) / target.name
            if target.name.endswith((".tar", *_COMPRESSED)):
                top = f"{version.name}-{version.digest.removeprefix('sha256:')[:12]}"
                write_tar(files, top, staged, compressed=target.name.endswith(_COMPRESSED))
            else:
                staged.mkdir()
                for path in files:
                    shutil.copyfile(path, staged / path.name)
                    sync_file(staged / path.name)
            sync_file(staged)
            staged.rename(target)
            sync_file(target.parent)
    except OSError as error:
        raise StoreFailed(
            f"{target} can't be written: {error.strerror or error}",
            hint="free disk space or check the folder's owner, then export again",
        ) from error
    return version


def _check_target(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise InvalidInput(
            f"{target} exists", hint="remove it, or give another target", param="target"
        )
    if not target.parent.is_dir():
        raise InvalidInput(
            f"there is no folder {target.parent}", hint="make it first", param="target"
        )
    if target.suffix in _OTHER_ARCHIVES and not target.name.endswith(_COMPRESSED):
        raise InvalidInput(
            f"{target.name} is a kind of archive that is not written",
            hint="end the target with .tar, .tar.gz or .tgz; anything else is a folder",
            param="target",
        )


# In


@contextmanager
def opened(registry: Registry, source: Path) -> Iterator[Path]:
    """A source as a folder: itself, or its tar unpacked for as long as the block runs.

    Raises:
        UnsafeFile, InvalidInput, StoreFailed: as `unpack` does.
    """
    if source.is_dir():
        yield source
        return
    with registry.store.scratch() as folder:
        unpack(source, folder / "unpacked")
        yield folder / "unpacked"


def import_own(
    registry: Registry, folder: Path, *, name: str | None = None, project: str | None = None
) -> Version:
    """Publish what `export` wrote; equal content under an equal name is the same version.

    Args:
        name: instead of the name that the manifest has.
        project: instead of the manifest's.

    Raises:
        InvalidManifest, DigestMismatch: altered since it was exported.
        IncompatibleAdapter: no base of the registry is the one it was made for.
        UnsafeFile: links, or files that a version doesn't have.
        StoreFailed: nothing was published.
    """
    with _plain(folder / MANIFEST) as file:
        manifest = parse_manifest(file.read(DEFAULT_LIMITS.parsed_bytes), MANIFEST)
    if strange := sorted(manifest.files.keys() - VERSION_FILES):
        raise InvalidManifest(
            f"{MANIFEST} lists {shown(strange[0])}, which is not a file of a version",
            hint="export the version again",
        )
    base = _base_like(registry, manifest)
    with registry.store.scratch() as parcel:
        for part, digest in manifest.files.items():
            take(registry, folder / part, parcel / part)
            if digest_file(parcel / part) != digest:
                raise DigestMismatch(f"{part} was altered", hint="export the version again")
        known: dict[str, Any] = {key: getattr(manifest, key) for key in Draft.model_fields}
        known["base"] = manifest.base.model_copy(update={"name": base.name})
        if name is not None:
            known["name"] = check_name(name)
        if project is not None:
            known["project"] = check_name(project, "project")
        return registry.publish(parcel, Draft(**known))


def _base_like(registry: Registry, manifest: Manifest) -> Base:
    """The registry's base with the content that a version was made for."""
    wanted, known = manifest.base, registry.bases()
    problem = "there is no base model here"
    if known:
        nearest = min(known, key=lambda b: (len(wanted.differences(b.ref)), b.name != wanted.name))
        differences = wanted.differences(nearest.ref)
        if not differences:
            return nearest
        problem = f"{nearest.name!r} here has another {', '.join(differences)}"
    raise IncompatibleAdapter(
        f"{manifest.name} was made for base {wanted.name!r}; {problem}",
        hint="add the base that it was made for: `modiste base add SOURCE`",
        param="base",
    )


def take(registry: Registry, source: Path, place: Path) -> None:
    """Copy a plain file into a scratch folder, where nobody else changes it.

    Raises:
        UnsafeFile: a link.
        InvalidInput: it is missing or can't be read.
        StoreFailed: the disk is full.
    """
    with _plain(source) as file, registry.store.writing(), place.open("xb") as copy:
        shutil.copyfileobj(file, copy)


def _plain(path: Path) -> IO[bytes]:
    if path.is_symlink():
        raise UnsafeFile(f"{path.name} is a link", hint="put the file itself there")
    if not path.is_file():
        raise InvalidInput(
            f"{path.name} is missing", hint="give the whole folder or tar", param="source"
        )
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInput(
            f"{path} can't be read: {error.strerror}", hint="check its owner", param="source"
        ) from error
