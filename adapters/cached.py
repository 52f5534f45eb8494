"""A store elsewhere with a verified cache here.

URL/NAME/<64 hex digits>/…         as in a local store, the manifest last
HOME/store/NAME/<64 hex digits>/…  what was needed so far, each file checked before it got its name
HOME/store/.locks/NAME-<64 hex>    held while a version is fetched or dropped; its time says
                                   when the version was last asked for
"""

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.digests import digest_file, sync_file
from adapters.errors import DigestMismatch, InvalidInput, InvalidManifest, StoreFailed
from adapters.home import Home
from adapters.manifest import Manifest
from adapters.remote import Absent, Remote
from adapters.store import ASIDE, MANIFEST, VERSION_FILES, Staged, Store

logger = logging.getLogger("modiste.store")

PARTIAL = ".partial"
"""Ends the name of a file that is not all here yet."""
LOCKS = ".locks"


def open_store(home: Home) -> Store:
    """The store of a home folder; opens no connection.

    Raises:
        InvalidInput: `store_url` is no place for a store.
    """
    url = home.store_url
    if url is None:
        return Store(home.store)
    remote = Remote(url)
    place = Path(url.partition("://")[2]) if url.startswith(("file:", "local:")) else None
    if place is not None and place.resolve().is_relative_to(home.store.resolve()):
        raise InvalidInput(
            f"store_url is {home.store}, the place of its cache",
            hint="leave store_url out, or name another folder",
            param="store_url",
        )
    return CachedStore(home.store, remote)


@dataclass(frozen=True, slots=True)
class Cached:
    """What lies here of one version."""

    name: str
    digest: str
    size: int
    """Bytes, without the manifest."""
    used: float
    """When it was last asked for, seconds since 1970."""


class CachedStore(Store):
    """Versions in a remote store; `root` is their cache."""

    remote: Remote

    def __init__(self, root: Path, remote: Remote) -> None:
        super().__init__(root)
        self.remote = remote

    # In

    def upload(self, staged: Staged) -> None:
        """Copy a publication's files; without a manifest nobody takes them for a version.

        Raises:
            StoreFailed: the next try begins again.
        """
        for file in staged.files:
            self.remote.upload(
                staged.folder / file, self.key(staged.draft.name, staged.digest, file)
            )

    def complete(self, folder: Path, manifest: Manifest) -> None:
        """Write the remote manifest, once its files are seen there."""
        key = self.key(manifest.name, manifest.digest)
        found = self.remote.files(key, quick=True)
        sizes = {file: (folder / file).stat().st_size for file in manifest.files}
        if lost := [file for file, size in sizes.items() if found.get(file) != size]:
            raise StoreFailed(
                f"{', '.join(lost)} of {manifest.name} went from the store while it was published",
                hint="a collection met an old try of the same publication; publish again",
            )
        self.remote.upload(folder / MANIFEST, f"{key}/{MANIFEST}", quick=True)

    # Out

    def manifest(self, name: str, digest: str) -> Manifest:
        """A version's manifest, from the cache or fetched.

        Raises:
            StoreFailed: it can't be read or kept.
            InvalidManifest, DigestMismatch: the remote one was altered.
        """
        try:
            return super().manifest(name, digest)
        except (StoreFailed, InvalidManifest, DigestMismatch):
            return self._fetch_manifest(name, digest)

    def _fetch_manifest(self, name: str, digest: str) -> Manifest:
        # quick: who looks a version up may be in a transaction
        text = self.remote.read(self.key(name, digest, MANIFEST), quick=True)
        manifest = self.parse(text, name, digest)
        if manifest.files.keys() - VERSION_FILES:
            raise InvalidManifest(
                f"{name} {digest}: the manifest lists files that a version doesn't have",
                hint="the manifest was altered; publish the version again",
            )
        place = self.folder(name, digest)
        with self.scratch() as folder, self.writing():
            (folder / MANIFEST).write_bytes(text)
            sync_file(folder / MANIFEST)
            place.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).replace(place / MANIFEST)
        return manifest

    def verify(self, manifest: Manifest) -> None:
        """Have every file of a version here, with its digest.

        What is missing is fetched, what was damaged here is fetched again. Processes and threads
        that want the same version wait for one download.

        Raises:
            StoreFailed: the store is away, or the disk here is full; the next call goes on.
            DigestMismatch: a remote file is not what its digest says.
        """
        with self._locked(manifest.name, manifest.digest, fcntl.LOCK_SH):
            if self._whole(manifest):
                return
        with self._locked(manifest.name, manifest.digest):
            try:
                self._have(manifest)
            except (Absent, DigestMismatch):
                # published again elsewhere, with other reports beside the same weights?
                now = self._fetch_manifest(manifest.name, manifest.digest)
                if now.files == manifest.files:
                    raise
                self._have(now)

    def missing(self, manifest: Manifest) -> int:
        """Bytes that `verify` would have to fetch at most."""
        return max(0, manifest.size - self._size(self.folder(manifest.name, manifest.digest)))

    def _whole(self, manifest: Manifest) -> bool:
        places = [
            (self.folder(manifest.name, manifest.digest) / file, digest)
            for file, digest in manifest.files.items()
        ]
        return all(place.exists() for place, _ in places) and all(
            _holds(place, digest) for place, digest in places
        )

    def _have(self, manifest: Manifest) -> None:
        folder = self.folder(manifest.name, manifest.digest)
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
        for file, digest in manifest.files.items():
            place = folder / file
            if _holds(place, digest):
                continue
            if place.exists():
                logger.warning("%s was damaged in the cache and is fetched again", place)
            self._fetch(manifest, file, place)

    def _fetch(self, manifest: Manifest, file: str, place: Path) -> None:
        key, partial = self.key(manifest.name, manifest.digest, file), Path(f"{place}{PARTIAL}")
        for _ in range(2):
            with self.writing():
                try:
                    self.remote.download(key, partial)
                    whole = _holds(partial, manifest.files[file])
                    if whole:
                        sync_file(partial)
                        partial.replace(place)
                        sync_file(place.parent)
                        return
                    partial.unlink()
                except OSError:
                    partial.unlink(missing_ok=True)  # a full disk needs the room more
                    raise
        raise DigestMismatch(
            f"{manifest.name}@{manifest.version}: {file} was altered in {self.remote.url}",
            hint="restore the version from a backup, or publish it again",
        )

    # What stays here

    @contextmanager
    def held(self, manifest: Manifest) -> Iterator[Path]:
        """A version's folder, which stays in the cache while the block runs."""
        with self._locked(manifest.name, manifest.digest, fcntl.LOCK_SH):
            yield self.folder(manifest.name, manifest.digest)

    def cached(self) -> list[Cached]:
        """What the cache has, the longest unused first."""
        found = []
        for folder in self.root.glob("[!.]*/*"):
            size = self._size(folder)
            if size:
                lock = self._lock_of(folder.parent.name, folder.name)
                used = [path.stat().st_mtime for path in (folder, lock) if path.exists()]
                digest = f"sha256:{folder.name}"
                found.append(Cached(folder.parent.name, digest, size, max(used, default=0.0)))
        return sorted(found, key=lambda cached: cached.used)

    def drop(self, cached: Cached, *, removed: bool) -> int:
        """Remove a version's files here; returns the bytes that went.

        None go while somebody uses it, or where the remote store lacks them: they may have been
        published before the store was moved there. `removed` versions are nobody's.

        Raises:
            StoreFailed: the remote store doesn't answer.
        """
        folder = self.folder(cached.name, cached.digest)
        there = {} if removed else self.remote.files(self.key(cached.name, cached.digest))
        with (
            suppress(BlockingIOError),
            self._locked(cached.name, cached.digest, fcntl.LOCK_EX | fcntl.LOCK_NB),
            self.writing(),
        ):
            files = [path for path in folder.iterdir() if path.name != MANIFEST]
            whole = [path for path in files if not path.name.endswith(PARTIAL)]
            if not removed and (
                MANIFEST not in there
                or any(there.get(path.name) != path.stat().st_size for path in whole)
            ):
                return 0
            self.staging.mkdir(exist_ok=True)
            aside = Path(tempfile.mkdtemp(dir=self.staging, prefix=ASIDE))
            for path in files:
                path.rename(aside / path.name)
            shutil.rmtree(aside)
            return cached.size
        return 0

    def erase(self, name: str, digest: str) -> None:
        key = self.key(name, digest)
        # without its manifest it is no version, whatever a break leaves of it
        self.remote.remove([f"{key}/{MANIFEST}", *(f"{key}/{f}" for f in self.remote.files(key))])
        self.remote.remove_folder(key)
        self.remote.remove_folder(name)
        self._erase_here(name, digest)

    def _erase_here(self, name: str, digest: str, how: int = fcntl.LOCK_EX) -> None:
        with self._locked(name, digest, how):
            super().erase(name, digest)
        self._lock_of(name, digest).unlink(missing_ok=True)

    def keep_only(self, known: Collection[tuple[str, str]], unused_s: float) -> int:
        """Remove from the cache what is not known, by adapter and digest; returns how much that is.

        Args:
            unused_s: younger things may be about to be known.
        """
        removed = 0
        for folder in self.root.glob("[!.]*/*"):
            name, digest = folder.parent.name, f"sha256:{folder.name}"
            if (name, digest) not in known and time.time() - folder.stat().st_mtime > unused_s:
                with suppress(BlockingIOError), self.writing():
                    self._erase_here(name, digest, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    removed += 1
        return removed

    def key(self, name: str, digest: str, *rest: str) -> str:
        """Where a version, or a file of it, lies in the remote store."""
        return "/".join((*self.folder(name, digest).relative_to(self.root).parts, *rest))

    def _lock_of(self, name: str, digest: str) -> Path:
        return self.root / LOCKS / f"{name}-{digest.removeprefix('sha256:')}"

    @contextmanager
    def _locked(self, name: str, digest: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        """Lock a version against other threads and processes; only asking for it is a use of it."""
        path = self._lock_of(name, digest)
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        with file:
            fcntl.flock(file, how)
            if not how & fcntl.LOCK_NB:
                os.utime(path)
            yield

    @staticmethod
    def _size(folder: Path) -> int:
        if not folder.is_dir():
            return 0
        return sum(path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST)


def _holds(path: Path, digest: str) -> bool:
    """Whether a file is there with this digest; one that can't be read is not."""
    try:
        return digest_file(path) == digest
    except OSError:
        return False
