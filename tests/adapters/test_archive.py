"""Tars from anybody: what is read of them, and that nothing is written outside."""

import errno
import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters import archive
from adapters.archive import TOKENIZER_PARTS, VERSION_FILES, Limits, unpack, write_tar
from adapters.errors import AdapterError, InvalidInput, StoreFailed, UnsafeFile
from tests.adapters.tars import member, summed, tar_of

CONFIG = "adapter_config.json"


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Unpack a tar's bytes; the files by name."""

    def call(data: bytes, limits: Limits = archive.DEFAULT_LIMITS) -> dict[str, bytes]:
        (tmp_path / "a.tar").write_bytes(data)
        unpack(tmp_path / "a.tar", tmp_path / "into", limits)
        return {path.name: path.read_bytes() for path in (tmp_path / "into").iterdir()}

    return call


@pytest.fixture
def refused(unpacked: Any, tmp_path: Path) -> Callable[..., str]:
    """Unpack what must be refused; the message. Nothing may be left."""

    def call(data: bytes, kind: type[AdapterError], limits: Any = archive.DEFAULT_LIMITS) -> str:
        with pytest.raises(kind) as caught:
            unpacked(data, limits)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
        assert caught.value.hint
        return str(caught.value)

    return call


# What comes in


@pytest.mark.parametrize("top", ["", "./", "adapter/", "./adapter/"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_files_lie_at_the_top_or_in_one_folder(unpacked: Any, top: str, mode: str) -> None:
    folder = [member(top.rstrip("/"), b"", type=tarfile.DIRTYPE)] if top else []
    data = tar_of(*folder, member(f"{top}{CONFIG}", b"one"), member(f"{top}probe.json"), mode=mode)

    assert unpacked(data) == {CONFIG: b"one", "probe.json": b"{}"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read_long_names_and_attributes_included(
    unpacked: Any, form: int
) -> None:
    buffer = io.BytesIO()
    long = "folder-" * 12 + "x" if form == tarfile.USTAR_FORMAT else "folder-" * 30
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for entry, content in (member(f"{long}/{CONFIG}", mtime=1.5), member(f"{long}/probe.json")):
            tar.addfile(entry, io.BytesIO(content))

    assert unpacked(buffer.getvalue()).keys() == {CONFIG, "probe.json"}


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "special_tokens_map.json", "trainer_state.json", "all_results.json",
        "trainer_log.jsonl", "training_loss.png", "._adapter_config.json", "generation_config.json",
        "training_args.yaml", "merges.txt",
    ],
)  # fmt: skip
def test_what_trainers_leave_beside_is_skipped(unpacked: Any, name: str) -> None:
    assert unpacked(tar_of(member(f"a/{name}", b"x" * 600), member(f"a/{CONFIG}"))).keys() == {
        CONFIG
    }


def test_the_tokenizer_comes_along_to_be_compared(unpacked: Any) -> None:
    assert unpacked(tar_of(*(member(name) for name in TOKENIZER_PARTS))).keys() == TOKENIZER_PARTS


def test_what_we_write_we_read(tmp_path: Path) -> None:
    files = [tmp_path / name for name in sorted(VERSION_FILES)]
    for path in files:
        path.write_bytes(path.name.encode() * 999)
    write_tar(files, "x-1", tmp_path / "a.tgz", compressed=True)
    unpack(tmp_path / "a.tgz", tmp_path / "into")

    got = {path.name: path.read_bytes() for path in (tmp_path / "into").iterdir()}
    assert got == {path.name: path.read_bytes() for path in files}


# What doesn't

UNSAFE: list[tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = [
    ([member(f"../{CONFIG}")], "leads out"),
    ([member(f"a/../../{CONFIG}")], "leads out"),
    ([member(f"a/../{CONFIG}")], "leads out"),
    ([member(f"/{CONFIG}")], "leads out"),
    ([member(f"//{CONFIG}")], "leads out"),
    ([member(f"C:\\{CONFIG}")], "leads out"),
    ([member("..", b"", type=tarfile.DIRTYPE)], "leads out"),
    ([member("/etc", b"", type=tarfile.DIRTYPE)], "leads out"),
    ([member(f"a/b/{CONFIG}")], "folder of a folder"),
    ([member("a/b", b"", type=tarfile.DIRTYPE)], "folder of a folder"),
    ([member(f"a/{CONFIG}"), member("b/probe.json")], "another folder"),
    ([member(CONFIG), member("b/probe.json")], "another folder"),
    ([member(CONFIG), member(CONFIG)], "twice"),
    ([member(CONFIG, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "plain file"),
    ([member(CONFIG, b"", type=tarfile.LNKTYPE, linkname="../../secret")], "plain file"),
    ([member(CONFIG, b"", type=tarfile.FIFOTYPE)], "plain file"),
    ([member(CONFIG, b"", type=tarfile.CHRTYPE)], "plain file"),
    ([member(CONFIG, b"", type=tarfile.BLKTYPE)], "plain file"),
    ([member("README.md", b"", type=tarfile.SYMTYPE, linkname="x")], "plain file"),
    ([member(CONFIG, b"", type=b"Z")], "plain file"),
    ([member(CONFIG, type=tarfile.GNUTYPE_SPARSE)], "plain file"),
    ([member("a/adapter_model.bin")], "pickle"),
    ([member("training_args.bin")], "pickle"),
    ([member("optimizer.pt")], "pickle"),
    ([member("run.py")], "not a file of an adapter"),
    ([member("manifest.json/")], "leads out"),
    ([member("")], "leads out"),
]


def told(value: Any) -> str:
    """The same in every process: tests may run in several."""
    return value if isinstance(value, str) else ",".join(info.name for info, _ in value)[:40]


@pytest.mark.parametrize(("members", "word"), UNSAFE, ids=told)
def test_a_member_that_is_not_a_plain_file_of_an_adapter_is_refused(
    refused: Any, members: list[tuple[tarfile.TarInfo, bytes]], word: str
) -> None:
    told = refused(tar_of(*members), UnsafeFile)

    assert word in told
    assert ascii(members[-1][0].name.rstrip("/"))[1:-1] in told


# Too much


def test_ten_thousand_members_are_refused_at_the_limit(refused: Any) -> None:
    data = tar_of(*(member(f"a/{number}.md") for number in range(10_000)))

    assert "member 257, 256 are allowed" in refused(data, UnsafeFile)


ZEROS = bytes(64 * 2**20)


@pytest.mark.parametrize(
    ("size", "name", "words"),
    [
        (len(ZEROS), "adapter_model.safetensors", "more than 1 MiB in all"),
        (len(ZEROS), "README.md", "more than 1 MiB in all"),  # skipping reads it too
        (10, "adapter_model.safetensors", "more than"),  # the header lies, the stream goes on
        (10 * 2**40, "adapter_model.safetensors", "more than 1 MiB in all"),
    ],
)
def test_a_gzip_bomb_is_refused_while_it_expands(
    refused: Any, size: int, name: str, words: str
) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = size
    data = gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + ZEROS, 1)
    tracemalloc.start()
    try:
        told = refused(data, UnsafeFile, Limits(total_bytes=2**20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert name in told
    assert words in told
    assert peak < 8 * 2**20


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_gigabytes_is_not_read(refused: Any, kind: bytes) -> None:
    first = tar_of(member("probe.json"))[:1024]
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 4 * 2**30
    data = gzip.compress(first + entry.tobuf(tarfile.GNU_FORMAT) + ZEROS, 1)

    told = refused(data, UnsafeFile)
    assert "probe.json" in told
    assert "a header of more than 64 KiB" in told


def test_headers_without_end_are_refused(refused: Any) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 0
    data = entry.tobuf(tarfile.USTAR_FORMAT) * 10_000

    assert "a header of more than 64 KiB" in refused(data, UnsafeFile)


def test_a_file_that_is_read_whole_may_not_be_large(refused: Any, unpacked: Any) -> None:
    limits = Limits(parsed_bytes=1000)
    told = refused(tar_of(member("a/manifest.json", bytes(1001))), UnsafeFile, limits)
    assert "'a/manifest.json' has 0 MiB" in told

    assert unpacked(tar_of(member("predictions.jsonl", bytes(1001))), limits)


def test_a_tar_as_large_as_allowed_is_read(unpacked: Any) -> None:
    data = tar_of(member("adapter_model.safetensors", bytes(2**20)))

    assert unpacked(data, Limits(total_bytes=len(data) + 512))


def test_a_header_of_negative_size_does_not_read_everything(refused: Any) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, -(2**20)
    data = gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + ZEROS, 1)
    tracemalloc.start()
    try:
        assert "a size or a place in it is negative" in refused(data, InvalidInput)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 8 * 2**20


@pytest.mark.parametrize("size", [-1, -512, -(2**40)])
def test_a_negative_size_does_not_lead_back(refused: Any, size: int) -> None:
    entry = tarfile.TarInfo(CONFIG)
    entry.size = size
    blocks = entry.tobuf(tarfile.GNU_FORMAT) * 3

    refused(blocks, AdapterError)


# Damage


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_was_cut_off_is_refused_wherever_it_ends(refused: Any, mode: str) -> None:
    data = tar_of(member(CONFIG, b"a" * 700), member("probe.json", b"b" * 1500), mode=mode)
    needed = len(data) if mode == "w:gz" else 512 + 1024 + 512 + 1536 + 512

    for length in {*range(0, needed, 61), *range(0, needed, 512), needed - 1}:
        assert "is not a whole tar" in refused(data[:length], InvalidInput)


def test_a_broken_header_is_not_taken_for_the_end(refused: Any) -> None:
    data = bytearray(tar_of(member(CONFIG), member("probe.json")))
    data[1024 + 5] ^= 1

    assert CONFIG in refused(bytes(data), InvalidInput)


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "a,b"},
        {"GNU.sparse.size": "many"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"size": "-1"},
        {"hdrcharset": "BINARY", "path": "\udcff"},
    ],
)
def test_attributes_that_are_nonsense_are_refused(refused: Any, headers: dict[str, str]) -> None:
    entry, content = member(CONFIG, b"no number", pax_headers=headers)

    refused(tar_of((entry, content)), AdapterError)


def test_a_list_of_gaps_that_is_cut_off_is_refused(refused: Any) -> None:
    entry = tarfile.TarInfo(CONFIG)
    entry.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1  # says that the list goes on

    refused(summed(block), InvalidInput)


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04" + bytes(600), b"text", gzip.compress(b"text"), tar_of(mode="w:xz")],
    ids=["empty", "zip", "text", "gzip", "xz"],
)
def test_what_is_no_tar_is_told(refused: Any, data: bytes) -> None:
    assert "is not a whole tar" in refused(data, InvalidInput)


def test_a_full_disk_leaves_nothing(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_source: object, _size: int, place: Path) -> None:
        place.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_copy", full)

    assert "No space left" in refused(tar_of(member(CONFIG)), StoreFailed)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(member(CONFIG)))
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "mine").write_text("mine")
    with pytest.raises(StoreFailed):
        unpack(tmp_path / "a.tar", tmp_path / "into")

    assert (tmp_path / "into" / "mine").read_text() == "mine"
