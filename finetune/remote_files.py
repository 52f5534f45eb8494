"""Data elsewhere, by fsspec URL: `s3://bucket/a.jsonl`, `https://host/a.csv` and others.

Only what a recipe names is asked for. Files are copied to a temporary folder, read there, and
removed: a connection that breaks leaves nothing half read.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.registry import known_implementations

from adapters.errors import InvalidInput, StoreFailed
from finetune.files import whole

_WEB = frozenset({"http", "https"})
_S3_LIMITS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 2}}
_CREDENTIALS = (
    "give credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "FSSPEC_PROTOCOL_OPTION), never in a recipe: it is published with the version"
)


def is_url(pattern: str) -> bool:
    return "://" in pattern or "::" in pattern


def find_remote(pattern: str, param: str) -> list[str]:
    """URLs of the files that a URL or a glob of them names, sorted.

    Raises:
        InvalidInput: it can't be used, has credentials in it, or matches nothing.
        StoreFailed: the place can't be reached.
    """
    _check(pattern, param)
    if urlsplit(pattern).scheme in _WEB:
        return [pattern]  # whether it is there is seen when it is copied
    fs, path = _open(pattern, param)

    def look() -> list[str]:
        magic = re.search(r"[*?\[]", path)
        found = fs.glob(path, detail=True) if magic else {path: fs.info(path)}
        return sorted(name for name, entry in found.items() if entry["type"] == "file")

    files = _ask(look, pattern, param)
    if not files:
        raise InvalidInput(
            f"{param}: {pattern!r} matches no file", hint="check the URL", param=param
        )
    return [fs.unstrip_protocol(name) for name in files]


def copy_remote(url: str, place: Path, param: str) -> None:
    """Copy a file here; `place` appears only if all of it came.

    Raises:
        InvalidInput: there is no such file.
        StoreFailed: it can't be reached, or can't be written here.
    """
    fs, path = _open(url, param)
    with whole(place) as partial:
        _ask(lambda: fs.get_file(path, str(partial)), url, param)


def _check(pattern: str, param: str) -> None:
    scheme, _, rest = pattern.partition("://")
    if scheme not in known_implementations or "::" in pattern or "://" in rest:
        raise InvalidInput(
            f"{param}: the URL is not of a file system that is known",
            hint="write s3://BUCKET/FILE or https://HOST/FILE, or another one that fsspec knows",
            param=param,
        )
    if "@" in rest.split("/", 1)[0] or (scheme in _WEB and re.search(r"[?#]", rest)):
        raise InvalidInput(
            f"{param}: the URL has credentials or a query in it",
            hint=f"{_CREDENTIALS}; a file behind a signed URL is to be fetched by hand",
            param=param,
        )
    if scheme in _WEB and re.search(r"[*\[]", rest):
        raise InvalidInput(
            f"{param}: {pattern!r} is a glob, and {scheme}:// has no listings",
            hint="name each file",
            param=param,
        )


def _open(url: str, param: str) -> tuple[Any, str]:
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    scheme = urlsplit(url).scheme
    if scheme in ("s3", "s3a"):
        theirs = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
        options["config_kwargs"] = {**_S3_LIMITS, **theirs}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise InvalidInput(
            f"{param}: {scheme}:// needs a package: {error}",
            hint="install it beside modiste, or copy the file here",
            param=param,
        ) from error
    return fs, path


def _ask(call: Any, url: str, param: str) -> Any:
    try:
        return call()
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{param}: there is no {url}", hint="check the URL", param=param
        ) from error
    except Exception as error:  # each library has errors of its own
        reason = re.sub(r"//[^/\s@]*@", "//***@", str(error) or type(error).__name__)
        denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
        hint = _CREDENTIALS if denied else "check the network and TMPDIR's space, then try again"
        raise StoreFailed(f"can't read {url}: {reason}", hint=hint, param=param) from error
