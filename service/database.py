"""The tables of what callers keep here, and of what they used: keys, files, jobs, batches, usage.

They lie beside the registry's in one database and have one history of migrations with them
(`adapters/migrations`). What is listed in pages has a `number` that rises, so that a page
begins after a row whatever its time says.
"""

from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from adapters.database import Table


class ProjectRow(Table):
    """A tenant."""

    __tablename__ = "projects"
    name: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[datetime]
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    concurrent: Mapped[int | None] = mapped_column(BigInteger)
    """Of each limit none: that of the settings; 0: there is no limit."""


class KeyRow(Table):
    """An API key; the key itself is told once and kept nowhere."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("digest", name="uq_api_keys_digest"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    """SHA-256 in hex."""
    project: Mapped[str] = mapped_column(ForeignKey("projects.name"))
    name: Mapped[str]
    scopes: Mapped[str]
    """With spaces between."""
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    concurrent: Mapped[int | None] = mapped_column(BigInteger)
    """Of each limit none: that of the settings; 0: there is no limit."""


class FileRow(Table):
    """A file that a caller uploaded or a job wrote; its content lies in the file store."""

    __tablename__ = "files"
    __table_args__ = (
        UniqueConstraint("id", name="uq_files_id"),
        Index("ix_files_project", "project", "number"),
        Index("ix_files_expires", "expires"),
        Index("ix_files_deleted", "deleted"),
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    project: Mapped[str]
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str]
    """Of the content."""
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    deleted: Mapped[datetime | None]
    """The row stays for a while: whoever deletes what he lists asks for what comes after it."""


class UploadRow(Table):
    """A file that comes in parts."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Promised; so many must have come when it is completed."""
    status: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime]
    file_expires_after_s: Mapped[int | None]
    file: Mapped[str | None]
    """Its id, once completed."""


class PartRow(Table):
    """A part of an upload; the order is told at its completion."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload", "upload"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[datetime]


class JobRow(Table):
    """A fine-tuning job: what was asked for, how far it is, and who works on it."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("id", name="uq_jobs_id"),
        Index("ix_jobs_project", "project", "number"),
        Index("ix_jobs_status", "status"),
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    project: Mapped[str]
    caller: Mapped[str]
    model: Mapped[str]
    """As asked: a base model, or a version to go on from."""
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    suffix: Mapped[str | None]
    seed: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[dict[str, Any]]
    """As OpenAI's API tells it, defaults filled in."""
    labels: Mapped[dict[str, Any] | None]
    """The caller's metadata."""
    order: Mapped[dict[str, Any]]
    """What the trainer is told: packaged recipe, settings, whether to promote."""
    status: Mapped[str]
    wanted: Mapped[str | None]
    """What the worker shall do next: cancel, or pause."""
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    ends: Mapped[datetime | None]
    """Expected."""
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    result: Mapped[str | None]
    """The fine-tuned model's name."""
    result_file: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    worker: Mapped[str | None]
    until: Mapped[float]
    """Of the worker's lease, seconds since 1970 by the database's clock."""
    lost: Mapped[int]
    """Workers that died at it since its last new step."""


class JobEventRow(Table):
    """Something that happened to a job, once."""

    __tablename__ = "job_events"
    __table_args__ = (
        UniqueConstraint("id", name="uq_job_events_id"),
        UniqueConstraint("job", "key", name="uq_job_events_key"),
        Index("ix_job_events_job", "job", "number"),
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    key: Mapped[str]
    """What it is about: a step that is trained again after a kill is told once."""
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    created: Mapped[datetime]


class CheckpointRow(Table):
    """An adapter from within a job that can be asked as a model."""

    __tablename__ = "job_checkpoints"
    __table_args__ = (
        UniqueConstraint("id", name="uq_job_checkpoints_id"),
        UniqueConstraint("job", "step", name="uq_job_checkpoints_step"),
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    model: Mapped[str]
    metrics: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class BatchRow(Table):
    """Many requests of one file: how far they are, and which server works on them."""

    __tablename__ = "batches"
    __table_args__ = (
        UniqueConstraint("id", name="uq_batches_id"),
        Index("ix_batches_project", "project", "number"),
        Index("ix_batches_status", "status"),
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    project: Mapped[str]
    caller: Mapped[str]
    endpoint: Mapped[str]
    input_file: Mapped[str]
    window: Mapped[str]
    """As asked, such as 24h."""
    output_expires_after_s: Mapped[int | None]
    labels: Mapped[dict[str, Any] | None]
    """The caller's metadata."""
    status: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime]
    in_progress: Mapped[datetime | None]
    cancelling: Mapped[datetime | None]
    finalizing: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    total: Mapped[int]
    completed: Mapped[int]
    failed: Mapped[int]
    """Lines, as are those two."""
    errors: Mapped[list[dict[str, Any]] | None]
    """Why the whole batch failed."""
    output_file: Mapped[str | None]
    error_file: Mapped[str | None]
    server: Mapped[str | None]
    until: Mapped[float]
    """Of the server's lease, seconds since 1970 by the database's clock."""
    lost: Mapped[int]
    """Servers that ended at it since the first of its open lines is the same."""


class BatchPartRow(Table):
    """Answers to some lines of a batch; they lie in the file store, and are never asked again."""

    __tablename__ = "batch_parts"
    batch: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[str]
    """Key in the file store; of two servers that both believe to have the batch no two agree."""


class UsageRow(Table):
    """What was used in a day: one row for every project, key, model and route."""

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_project", "project", "day"),)
    day: Mapped[date] = mapped_column(primary_key=True)
    """In UTC."""
    project: Mapped[str] = mapped_column(primary_key=True)
    caller: Mapped[str] = mapped_column(primary_key=True)
    """The key's name in logs."""
    model: Mapped[str] = mapped_column(primary_key=True)
    """The reference that answered."""
    route: Mapped[str] = mapped_column(primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    """Of the requests."""
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    """Of the prompts' tokens."""
    completion_tokens: Mapped[int] = mapped_column(BigInteger)


class LimitUseRow(Table):
    """What a limited key or project used within one second."""

    __tablename__ = "limit_uses"
    subject: Mapped[str] = mapped_column(primary_key=True)
    second: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Since 1970, by the database's clock."""
    requests: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    """As they were reserved until the request ended, then as they were used."""
    last: Mapped[str]
    """The last request that was counted here."""


class LimitHoldRow(Table):
    """A running request of a key or project that may run so many at once."""

    __tablename__ = "limit_holds"
    subject: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str] = mapped_column(primary_key=True)
    server: Mapped[str]
    until: Mapped[float]
    """Seconds since 1970 by the database's clock; the holds of a server that is killed run out."""


class UsageReportRow(Table):
    """The last report of usage of each server: one that is sent again is not added again."""

    __tablename__ = "usage_reports"
    server: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    made: Mapped[datetime]
