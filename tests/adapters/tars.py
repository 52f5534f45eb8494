"""Tars of any kind, made in memory."""

import io
import tarfile
from typing import Any


def member(name: str, content: bytes = b"{}", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def summed(blocks: bytearray) -> bytes:
    """With right checksums in all headers, so that what was changed is read."""
    for start in range(0, len(blocks) - 511, 512):
        if blocks[start + 257 : start + 262] == b"ustar":
            block = blocks[start : start + 512]
            total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
            blocks[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(blocks)
