"""Parts that no batch needs any more go after a day."""

from pathlib import Path

import pytest

from adapters.registry import Registry
from adapters.remote import Remote
from service.batches import sweep
from service.batches.queue import CANCELLED, Batches, NewBatch, Outcome
from service.batches.sweep import sweep_parts


def test_old_parts_of_batches_that_ended_go(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    contents = Remote(f"file://{tmp_path / 'store'}")
    batches = Batches(Registry.open(tmp_path / "home").database)
    assert sweep_parts(contents, batches) == 0
    new = NewBatch("ours", "key", "/v1/generate", "file-a", "24h", None, None)
    works, ended = batches.create(new).id, batches.create(new).id
    assert batches.lease("s", [works]) is not None
    batches.end(ended, "s", Outcome(CANCELLED))
    (tmp_path / "part").write_text("x")
    for batch in (works, ended, "batch_none"):
        contents.upload(tmp_path / "part", f"batches/{batch}/part")
    contents.upload(tmp_path / "part", "file-a")
    assert sweep_parts(contents, batches) == 0
    monkeypatch.setattr(sweep, "OLD_S", -1.0)
    assert sweep_parts(contents, batches) == 2
    assert sorted(contents.files()) == [f"batches/{works}/part", "file-a"]
    folders = [path.name for path in (tmp_path / "store" / "batches").iterdir()]
    assert folders == [works]
