"""A home that has something of everything."""

from datetime import date
from pathlib import Path

from sqlalchemy import select

from adapters.registry import Registry
from service.batches.parts import Parts
from service.batches.queue import Batches, NewBatch
from service.database import BatchRow, UsageRow
from service.files import About, Files
from service.jobs.queue import Jobs, Order
from service.keys import Keys
from service.uploads import Uploads
from service.uses import USES
from tests.adapters.parcels import draft, parcel


def files_of(registry: Registry) -> Files:
    return Files(registry.database, registry.home, USES)


def fill(registry: Registry, work: Path, project: str, *, many: int = 1) -> str:
    """Something of each kind; returns a key."""
    files, database = files_of(registry), registry.database
    uploads, jobs, queue = Uploads(database, files), Jobs(database), Batches(database)
    content = work / "content"
    content.write_text(f"the text of {project}")
    secret = Keys(database).create(project, f"key of {project}")[1]
    for _ in range(many):
        file = files.add(content, About(project, f"{project}.jsonl", "fine-tune"))
        upload = uploads.create(About(project, f"{project}.jsonl", "batch"), 999)
        uploads.add_part(upload.id, project, content)
        order = Order(project, "key", "b", file.id, None, project, 0, {}, None, {})
        job = jobs.create(order)
        leased = jobs.lease("worker", job.id)
        assert leased is not None
        jobs.add_checkpoint(job.id, "worker", 1, f"ft:b:{project}", {})
        jobs.give_back(job.id, "worker")
        folder = registry.home.jobs / job.id
        folder.mkdir(parents=True)
        (folder / "log").write_text(f"the text of {project}")
        batch = queue.create(NewBatch(project, "key", "/v1/generate", file.id, "24h", None, None))
        parts = Parts(files.contents, files.scratch)
        place = parts.write(batch.id, [f"0\toutput\tthe text of {project}\n".encode()])
        with database.read() as session:
            rest = list(session.scalars(select(BatchRow.id).where(BatchRow.id != batch.id)))
        assert queue.lease("server", own=rest) is not None
        queue.keep(batch.id, "server", place, 1, 0, moved=True)
        queue.give_back(batch.id, "server")
    made = work / "made"
    if not made.exists():
        parcel(made)
    registry.publish(made, draft(made, f"of-{project}", project=project))
    registry.promote(f"of-{project}@1")
    with database.write() as session:
        session.add(
            UsageRow(
                day=date(2026, 1, 1), project=project, caller="k", model="m", route="/r",
                requests=1, failed=0, prompt_tokens=1, cached_tokens=0, completion_tokens=1,
            )
        )  # fmt: skip
    return secret
