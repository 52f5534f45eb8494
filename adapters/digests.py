"""Digests of files and of JSON values, written `sha256:<64 hex digits>`."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PREFIX = "sha256:"


def digest_bytes(data: bytes) -> str:
    return PREFIX + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Digest of a JSON value, independent of key order and white space."""
    return digest_bytes(_canonical(value))


def digest_json_list(values: Iterable[Any]) -> str:
    """As `digest_json` of the list of the values, which pass one by one."""
    whole = hashlib.sha256(b"[")
    for number, value in enumerate(values):
        whole.update((b"," if number else b"") + _canonical(value))
    whole.update(b"]")
    return PREFIX + whole.hexdigest()


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return PREFIX + hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Put a file's content on the disk before anything refers to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
