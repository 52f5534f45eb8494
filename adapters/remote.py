"""A store elsewhere, by its fsspec URL: `s3://bucket/prefix`, `file:///mnt/store` and others.

Here are single files alone: whole reads, resumable downloads, atomic uploads, listings. What a
version is and how it is checked stands in `adapters.cached`.
"""

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from os import getpid
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from adapters.digests import sync_file
from adapters.errors import InvalidInput, StoreFailed

PIECE_BYTES = 8 * 2**20
"""Of one request of a download; what a break costs at most."""
WAITS_S = (0.2, 0.5, 1.0, 2.0)
"""Pauses before a request is tried again."""
STAGING = ".staging"
"""Where uploads wait that a rename puts into place."""

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"})
"""They show an upload when it is whole, and have no folders to make."""
_S3 = frozenset({"s3", "s3a"})
_S3_LIMITS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 0}}
"""Of one request: tries are counted here, not in three libraries at once."""
_ENVIRONMENT = (
    "give credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "FSSPEC_PROTOCOL_OPTION), never in the URL"
)

T = TypeVar("T")


class Absent(StoreFailed):
    """The store answers and has no such file."""


def check_store_url(url: str, param: str = "store_url") -> str:
    """Return a valid URL of a store without its last slash.

    Raises:
        InvalidInput: an unknown protocol, no place in it, or credentials, which are not repeated.
    """
    parts = urlsplit(url)
    known = parts.scheme in known_implementations and "::" not in url and url.count("://") == 1
    if not known:
        raise InvalidInput(
            f"{param} is not a URL of a file system that is known",
            hint="write s3://BUCKET/PREFIX or file:///FOLDER, or another one that fsspec knows",
            param=param,
        )
    rest = url.partition("://")[2]
    secret = re.search(r":[^@]*@", rest) or "?" in rest or "#" in rest
    if secret or (parts.scheme in _OBJECT_STORES & {*_S3, "gs", "gcs"} and re.search("[:@]", rest)):
        raise InvalidInput(
            f"{param} has credentials or options in it", hint=_ENVIRONMENT, param=param
        )
    local = parts.scheme in ("file", "local")
    if (local and not rest.startswith("/")) or not rest.strip("/"):
        raise InvalidInput(
            f"{param} names no place",
            hint="write s3://BUCKET/PREFIX, or file:///FOLDER with three slashes",
            param=param,
        )
    return url.rstrip("/")


class Remote:
    """Files below one URL, by keys with slashes. Safe to use from several threads.

    A request that fails is tried again; a `quick` one, for which a transaction waits, only once.
    """

    def __init__(self, url: str, waits_s: tuple[float, ...] = WAITS_S) -> None:
        """Opens nothing yet.

        Raises:
            InvalidInput: not a URL of a store.
        """
        self.url = check_store_url(url)
        self.waits_s = waits_s
        self._scheme = urlsplit(url).scheme
        self._opened: tuple[int, Any, str] | None = None

    def read(self, key: str, *, quick: bool = False) -> bytes:
        """A small file.

        Raises:
            Absent, StoreFailed.
        """

        def get(fs: Any, root: str) -> bytes:
            return bytes(fs.cat_file(f"{root}/{key}"))

        return self._ask("read", get, key, quick=quick)

    def download(self, key: str, place: Path) -> None:
        """Copy a file; what `place` has of it already is not asked for again.

        Raises:
            Absent, StoreFailed: what came stays in `place` for the next call.
            OSError: `place` can't be written.
        """
        size = self.size(key)
        with place.open("ab") as file:
            if file.tell() > size:  # of another file
                file.seek(0)
                file.truncate()
            while (start := file.tell()) < size:
                file.write(self._piece(key, start, min(start + PIECE_BYTES, size)))
                file.flush()

    def size(self, key: str) -> int:
        """Bytes of a file.

        Raises:
            Absent, StoreFailed.
        """
        return self._ask("read", lambda fs, root: int(fs.info(f"{root}/{key}")["size"]), key)

    def _piece(self, key: str, start: int, end: int) -> bytes:
        def get(fs: Any, root: str) -> bytes:
            piece = bytes(fs.cat_file(f"{root}/{key}", start=start, end=end))
            if len(piece) != end - start:
                raise EOFError(f"{len(piece)} of {end - start} bytes came")
            return piece

        return self._ask("read", get, key)

    def upload(self, source: Path, key: str, *, quick: bool = False) -> None:
        """Copy a file there; it appears whole or not at all.

        Raises:
            StoreFailed.
        """

        def put(fs: Any, root: str) -> None:
            place = f"{root}/{key}"
            if self._scheme in _OBJECT_STORES:
                fs.put_file(str(source), place)
                return
            if isinstance(fs, LocalFileSystem) and not fs.isdir(root):
                raise FileNotFoundError(f"there is no folder {root}")  # or nothing is mounted
            staged = f"{root}/{STAGING}/{uuid4().hex}"
            for folder in (staged, place):
                fs.makedirs(folder.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(source), staged)
            if isinstance(fs, LocalFileSystem):
                sync_file(Path(staged))
            fs.mv(staged, place)
            if isinstance(fs, LocalFileSystem):
                sync_file(Path(place).parent)

        self._ask("write", put, "", quick=quick)

    def files(self, below: str = "", *, quick: bool = False) -> dict[str, int]:
        """Keys of all files below a key, relative to it, with their sizes in bytes.

        Raises:
            StoreFailed.
        """

        def find(fs: Any, root: str) -> dict[str, int]:
            top = f"{root}/{below}".rstrip("/")
            if isinstance(fs, LocalFileSystem) and not fs.isdir(root):
                raise FileNotFoundError(f"there is no folder {root}")
            found = fs.find(top, detail=True)
            return {
                name.removeprefix(f"{top}/"): int(entry["size"]) for name, entry in found.items()
            }

        return self._ask("list", find, "", quick=quick)

    def age_s(self, key: str) -> float:
        """Seconds since a file was written, by the store's clock; 0 where it keeps no time.

        Raises:
            Absent, StoreFailed.
        """

        def age(fs: Any, root: str) -> float:
            try:
                written: datetime = fs.modified(f"{root}/{key}")
            except NotImplementedError:
                return 0.0
            return (datetime.now(UTC) - written).total_seconds()

        return self._ask("read", age, key)

    def remove(self, keys: Iterable[str], *, quick: bool = False) -> None:
        """Remove files; those that are gone already are fine.

        Raises:
            StoreFailed.
        """

        def delete(fs: Any, root: str) -> None:
            for key in keys:
                try:
                    fs.rm_file(f"{root}/{key}")
                except FileNotFoundError:
                    continue

        keys = list(keys)
        self._ask("write", delete, "", quick=quick)

    def remove_folder(self, key: str) -> None:
        """Remove a folder that is empty, where the store has folders.

        Raises:
            StoreFailed.
        """

        def delete(fs: Any, root: str) -> None:
            place = f"{root}/{key}"
            if isinstance(fs, LocalFileSystem) and fs.isdir(place) and not fs.ls(place):
                fs.rmdir(place)

        self._ask("write", delete, "", quick=True)

    def check(self) -> None:
        """Ask for a listing.

        Raises:
            StoreFailed: it is away, does not exist or can't be listed.
        """

        def look(fs: Any, root: str) -> None:
            # a prefix or memory folder without files is no error, a bucket or folder that lacks is
            fs.ls(root.split("/", maxsplit=1)[0] if self._scheme in _OBJECT_STORES else root)

        if self._scheme != "memory":
            self._ask("list", look, "", quick=True)

    def _open(self) -> tuple[Any, str]:
        """The file system and the path in it; another one after a fork."""
        if self._opened is None or self._opened[0] != getpid():
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if self._scheme in _S3:
                theirs = fsspec.config.conf.get(self._scheme, {}).get("config_kwargs", {})
                options["config_kwargs"] = {**_S3_LIMITS, **theirs}
            try:
                fs, root = fsspec.core.url_to_fs(self.url, **options)
            except ImportError as error:
                raise InvalidInput(
                    f"store_url: {self._scheme}:// needs a package: {error}",
                    hint="install it beside modiste, or use s3:// or file://",
                    param="store_url",
                ) from error
            if self._scheme in _S3:
                fs.retries = 1
            self._opened = getpid(), fs, root.rstrip("/")
        return self._opened[1], self._opened[2]

    def _ask(
        self,
        doing: str,
        call: Callable[[Any, str], T],
        key: str,
        *,
        quick: bool = False,
    ) -> T:
        left = list(self.waits_s[:1] if quick else self.waits_s)
        while True:
            try:
                return call(*self._open())
            except InvalidInput:
                raise
            except Exception as error:  # each library has errors of its own
                if not left or not _passes(error):
                    raise self._failed(doing, key, error) from error
            time.sleep(left.pop(0))

    def _failed(self, doing: str, key: str, error: Exception) -> StoreFailed:
        if isinstance(error, FileNotFoundError) and key:
            return Absent(
                f"the store {self.url} has no {key}",
                hint="check that store_url names the right, existing place; restore the version "
                "from a backup, or publish it again",
            )
        reason = str(error) or type(error).__name__
        reason = re.sub(r"//[^/\s@]*@", "//***@", reason)  # an endpoint may have a password
        if isinstance(error, FileNotFoundError):
            hint = "check store_url; make the bucket or mount the folder"
        elif isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            hint = f"{_ENVIRONMENT}, of one who may list, read, write and delete there"
        else:
            hint = "check the network and the store, then try again: what came is kept"
        return StoreFailed(f"can't {doing} in the store {self.url}: {reason}", hint=hint)


def _passes(error: Exception) -> bool:
    """Whether another try may help."""
    lasting = isinstance(error, FileNotFoundError | PermissionError)
    return not lasting and "Credentials" not in type(error).__name__
