"""Whatever a tar holds, nothing is written outside and every error is one of ours."""

import gzip
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.archive import TOKENIZER_PARTS, VERSION_FILES, unpack
from adapters.errors import AdapterError
from tests.adapters.tars import member, summed, tar_of

CONFIG = "adapter_config.json"
PARTS = st.sampled_from(
    ["..", ".", "", "a", "into", "etc", "~", "C:", "..\\..", CONFIG, "manifest.json", "README.md",
     "probe.json", "x.bin"]
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from([*VERSION_FILES]),
    st.lists(PARTS, max_size=5).map("/".join),
    st.text(max_size=40),
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 4 + [tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE,
     tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE, b"Z"]
)  # fmt: skip
LINKS = st.sampled_from(["", "/etc", "..", "../secret", CONFIG])


def around(folder: Path) -> dict[str, bytes | None]:
    """What lies beside `into`."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "into" not in path.relative_to(folder).parts
    }


def unpack_somewhere(data: bytes) -> dict[str, bytes]:
    """Unpack among other files, which must stay as they are."""
    with tempfile.TemporaryDirectory() as scratch:
        outside = Path(scratch)
        (outside / "secret").write_text("mine")
        (outside / "home").mkdir()
        (outside / "home" / "a.tar").write_bytes(data)
        before = around(outside)
        into = outside / "home" / "into"
        try:
            unpack(outside / "home" / "a.tar", into)
        except AdapterError:
            assert not into.exists()
        assert around(outside) == before
        assert not any(path.is_symlink() or path.is_dir() for path in into.rglob("*"))
        return {path.name: path.read_bytes() for path in into.rglob("*")}


@settings(max_examples=300)
@given(st.lists(st.tuples(NAMES, KINDS, LINKS), max_size=4))
def test_no_name_leads_anything_out_of_the_folder(members: list[tuple[str, bytes, str]]) -> None:
    made = [
        member(name, b"" if kind == tarfile.DIRTYPE else b"theirs", type=kind, linkname=link)
        for name, kind, link in members
    ]
    files = unpack_somewhere(tar_of(*made))

    assert files.keys() <= {*VERSION_FILES, *TOKENIZER_PARTS, "manifest.json"}
    assert {*files.values()} <= {b"theirs"}


@settings(max_examples=300)
@given(
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damage_anywhere_is_an_error_of_ours(
    compressed: bool, checked: bool, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(
        tar_of(
            member(f"a/{CONFIG}", mtime=1.5),
            member(
                "b" * 120 + "/probe.json", pax_headers={"comment": "x", "GNU.sparse.map": "0,1"}
            ),
        )
    )
    for place, value in flips:
        data[place] ^= value
    blocks = summed(data) if checked else bytes(data)
    unpack_somewhere(gzip.compress(blocks) if compressed else blocks)


@settings(max_examples=200)
@given(st.binary(max_size=2000), st.booleans())
def test_noise_is_an_error_of_ours(noise: bytes, compressed: bool) -> None:
    assert unpack_somewhere(b"\x1f\x8b\x08" + noise if compressed else noise) == {}
