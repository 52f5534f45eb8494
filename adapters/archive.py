"""Tars of adapters: equal content written as equal bytes, and anybody's tar read with care.

A tar is read forwards, every byte counted. What is written bears one of the names below, so no
name in a tar can lead anywhere else.
"""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from adapters.bases import TOKENIZER_FILES
from adapters.errors import InvalidInput, StoreFailed, UnsafeFile
from adapters.store import EXTRA_FILES, MANIFEST, VERSION_FILES

TOKENIZER_PARTS = frozenset(
    {*TOKENIZER_FILES, "tokenizer_config.json", "added_tokens.json", "vocab.json",
     "chat_template.jinja"}
)  # fmt: skip
"""Compared with the base's when another trainer's adapter is imported, then left behind."""
HARMLESS = (
    "*.md", "LICENSE*", "NOTICE*", ".git*", ".DS_Store", "._*", "config.json",
    "generation_config.json", "special_tokens_map.json", "merges.txt", "*processor_config.json",
    "trainer_state.json", "trainer_log.jsonl", "*_results.json", "training_args.*ml", "Modelfile",
    "*.png", "*.log", "events.out.tfevents.*",
)  # fmt: skip
"""What peft, TRL, Unsloth, LLaMA-Factory and file managers leave beside an adapter."""
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

_PACK = "pack the adapter's own files only, at the top or in one folder"
_PIECE_BYTES = 2**20
_HEADER_BYTES = 2**16
"""Longest header of a member, its long name and attributes included."""
_LONG_HEADER = f"a header of more than {_HEADER_BYTES // 1024} KiB"
_DAMAGE = (
    tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError,
    # tarfile lets some damage pass until another line fails on it
    ValueError, LookupError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tar may hold."""

    total_bytes: int = 4 * 2**30
    """Uncompressed, headers included."""
    parsed_bytes: int = 64 * 2**20
    """Of each file that is later read as a whole."""
    members: int = 256


DEFAULT_LIMITS = Limits()


def write_tar(files: list[Path], top: str, place: Path, *, compressed: bool) -> None:
    """Write files into one folder of a tar, without owners and times; raises OSError."""
    with (
        place.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) if compressed else nullcontext(file) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in files:
            entry = tarfile.TarInfo(f"{top}/{path.name}")
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(entry, content)


def unpack(tar: Path, into: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Make the folder `into` of a tar or tar.gz that anybody may have made.

    What is harmless and not needed is skipped. After an error `into` is gone.

    Raises:
        UnsafeFile: links, devices, names that lead elsewhere, pickles, unknown files, too much.
        InvalidInput: not there, not a tar, cut off or damaged.
        StoreFailed: `into` can't be written.
    """
    if not tar.is_file():
        raise InvalidInput(
            f"there is no {tar}", hint="give a folder, or a .tar, .tar.gz or .tgz", param="source"
        )
    with ExitStack() as undo, _told(tar.name):
        into.mkdir()
        undo.callback(shutil.rmtree, into, ignore_errors=True)
        with tar.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if compressed else nullcontext(file) as content:
                _unpack(_Source(content, limits.total_bytes), into, limits)
        undo.pop_all()


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise InvalidInput(
            f"{name} is not a whole tar: {error}",
            hint="copy it again, or pack it again as .tar, .tar.gz or .tgz",
            param="source",
        ) from error
    except OSError as error:
        raise StoreFailed(
            f"{name} can't be unpacked: {error.strerror or error}",
            hint="free disk space, check that the file can be read, then try again",
        ) from error


class _Source:
    """A tar's bytes, read forwards only and never beyond what is allowed."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limit: int) -> None:
        self.file, self.limit = file, limit
        self.position, self.last, self.member = 0, b"", "the beginning"
        self.allow(_HEADER_BYTES, _LONG_HEADER)

    def allow(self, count: int, beyond: str = "") -> None:
        """Move the fence; `beyond` says what stands behind it."""
        self.fence, self.beyond = min(self.position + count, self.limit), beyond

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        self.read(position - self.position)

    def read(self, size: int) -> bytes:
        if size < 0:
            raise tarfile.ReadError("a size or a place in it is negative")
        if self.position + size > self.fence:
            total = f"more than {self.limit / 2**20:.0f} MiB in all"
            what = total if self.fence == self.limit else self.beyond
            raise UnsafeFile(f"after {self.member} comes {what}", hint=_PACK)
        self.last = self.file.read(size)
        self.position += len(self.last)
        return self.last


def _unpack(source: _Source, into: Path, limits: Limits) -> None:
    count, tops = 0, set[str]()
    stream: Any = source
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            count += 1
            source.member = shown(member.name)
            if count > limits.members:
                raise UnsafeFile(
                    f"{source.member} is member {count}, {limits.members} are allowed", hint=_PACK
                )
            top, name = _checked(member, limits)
            tops |= {top} if name else set()
            if len(tops) > 1 or (name and (into / name).exists()):
                raise UnsafeFile(
                    f"{source.member} is there twice or in another folder than the rest",
                    hint=_PACK,
                )
            size = member.size if member.isreg() else 0
            source.allow(size)
            _copy(source, size, into / name if name else None)
            source.allow(_HEADER_BYTES, _LONG_HEADER)
    if source.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
        raise tarfile.ReadError(f"it ends or is damaged after {source.member}")
    source.allow(_PIECE_BYTES, "more than a tar ends with")
    while source.read(tarfile.BLOCKSIZE):  # the checksum of a gzip stream stands at its end
        pass


def _checked(member: tarfile.TarInfo, limits: Limits) -> tuple[str, str]:
    """The folder and the name of a file to write; no name for what is skipped."""
    label = shown(member.name)
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise UnsafeFile(f"{label} is not a plain file", hint="remove links, devices and the like")
    if member.isdir() and member.name == ".":
        return "", ""
    parts = member.name.removeprefix("./").split("/")
    if {"", ".", ".."} & {*parts} or "\\" in member.name:
        raise UnsafeFile(f"{label} leads out of its folder", hint=_PACK)
    *folders, name = parts
    if len(folders) > (0 if member.isdir() else 1):
        raise UnsafeFile(f"{label} lies in a folder of a folder", hint=_PACK)
    known = name in {MANIFEST, *VERSION_FILES, *TOKENIZER_PARTS}
    if member.isdir() or (not known and any(fnmatchcase(name, part) for part in HARMLESS)):
        return "", ""
    if Path(name).suffix in PICKLES:
        raise UnsafeFile(
            f"{label} is a pickle, which can run code when read",
            hint="leave it out; weights are read from adapter_model.safetensors alone",
        )
    if not known:
        raise UnsafeFile(f"{label} is not a file of an adapter", hint=_PACK)
    parsed = name not in EXTRA_FILES and not name.endswith(".safetensors")
    if parsed and member.size > limits.parsed_bytes:
        raise UnsafeFile(
            f"{label} has {member.size / 2**20:.0f} MiB, "
            f"{limits.parsed_bytes / 2**20:.0f} MiB are allowed",
            hint="check what it is; an adapter's is small",
        )
    return "".join(folders), name


def _copy(source: _Source, size: int, place: Path | None) -> None:
    """Read `size` bytes, to a file or to nowhere."""
    with nullcontext() if place is None else place.open("xb") as file:
        while size > 0:
            piece = source.read(min(size, _PIECE_BYTES))
            if not piece:
                raise tarfile.ReadError(f"it ends inside {source.member}")
            size -= len(piece)
            if file is not None:
                file.write(piece)


def shown(name: str) -> str:
    """A name from outside, for a message: short, with everything unusual escaped."""
    return ascii(name[:120])
