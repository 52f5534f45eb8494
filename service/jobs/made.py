"""The models that fine-tuning jobs made, as GET /v1/models lists them."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from adapters.connect import Database
from adapters.database import AdapterRow, VersionRow
from adapters.names import fine_tuned_model, parse_reference
from adapters.records import READY
from service.database import JobRow
from service.jobs.states import SUCCEEDED


@dataclass(frozen=True, slots=True)
class MadeModel:
    """A version that a job made and that can be asked."""

    id: str
    """As the job tells it: ft:BASE:PROJECT:NAME:ID."""
    base: str
    reference: str
    digest: str
    task: str
    created: datetime


def made_models(database: Database, project: str) -> list[MadeModel]:
    """What a project's jobs made and is ready, the last first; no manifest is read."""
    jobs = (
        select(JobRow.result)
        .where(JobRow.project == project, JobRow.status == SUCCEEDED, JobRow.result.is_not(None))
        .order_by(JobRow.number.desc())
    )
    versions = (
        select(
            VersionRow.adapter, VersionRow.number, VersionRow.digest, VersionRow.created,
            AdapterRow.task,
        )
        .join(AdapterRow, AdapterRow.name == VersionRow.adapter)
        .where(AdapterRow.project == project, VersionRow.state == READY)
    )  # fmt: skip
    with database.read() as session:
        # two jobs that made equal content tell the same name
        told = list(dict.fromkeys(name for name in session.scalars(jobs) if name is not None))
        bases = {name: parse_reference(name).base or "" for name in told}
        ready = {
            fine_tuned_model(base, project, row.adapter, row.digest): row
            for row in session.execute(versions)
            for base in set(bases.values())
        }
    return [
        MadeModel(
            name, bases[name], f"{row.adapter}@{row.number}", row.digest, row.task, row.created
        )
        for name in told
        if (row := ready.get(name)) is not None
    ]
