"""Memory that large bodies took: how much of it a process keeps."""

import asyncio
import json
import platform
import subprocess
import sys

import pytest

from service import heap
from service.heap import LARGE, Heap

KEPT = """
import json, sys
from pathlib import Path
from service.heap import HEAP

def own_mib():
    told = Path("/proc/self/smaps_rollup").read_text()
    return int(told.partition("Anonymous:")[2].split()[0]) / 1024

if sys.argv[1] == "gives back":
    HEAP.set_up()
small = [bytes(2000) for _ in range(1000)]
before = own_mib()
for number in range(24):
    text = json.loads('"' + "a" * ((number + 2) * 1_000_000) + '"')
    values = json.loads("[" + ",".join(f'"{number:0600}"' for number in range(20_000)) + "]")
    small += [*values[::400], bytes(20_000)]  # something always stays
    del text, values
if sys.argv[1] == "gives back":
    HEAP.give_back()
print(json.dumps(own_mib() - before))
"""


def kept_mib(how: str) -> float:
    told = subprocess.run(
        [sys.executable, "-c", KEPT, how], capture_output=True, text=True, check=True, timeout=120
    )
    return float(json.loads(told.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's own ways")
def test_what_large_bodies_took_goes_back() -> None:
    given_back, kept = kept_mib("gives back"), kept_mib("keeps")
    assert given_back < 10
    assert kept > 2 * given_back


def test_it_gives_back_after_large_bodies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "EVERY_S", 0.01)
    one, given = Heap(), list[str]()
    monkeypatch.setattr(one, "give_back", lambda: given.append("back"))

    async def run() -> None:
        keeping = asyncio.create_task(one.keep_small())
        one.note(LARGE - 1)
        await asyncio.sleep(0.05)
        assert not given
        one.note(LARGE)
        await asyncio.sleep(0.05)
        assert given == ["back"]
        keeping.cancel()

    asyncio.run(run())
