"""projects, API keys, uploaded files, fine-tuning jobs, batches, usage"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("project", sa.String, sa.ForeignKey("projects.name"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True)),
        sa.Column("revoked", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    op.create_table(
        "files",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("id", name="uq_files_id"),
    )
    op.create_index("ix_files_project", "files", ["project", "number"])
    op.create_index("ix_files_expires", "files", ["expires"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.Column("file_expires_after_s", sa.Integer),
        sa.Column("file", sa.String),
    )
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("upload", sa.String, sa.ForeignKey("uploads.id"), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_upload_parts_upload", "upload_parts", ["upload"])
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("caller", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("training_file", sa.String, nullable=False),
        sa.Column("validation_file", sa.String),
        sa.Column("suffix", sa.String),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("method", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON),
        sa.Column("order", sa.JSON, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("wanted", sa.String),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True)),
        sa.Column("finished", sa.DateTime(timezone=True)),
        sa.Column("ends", sa.DateTime(timezone=True)),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("result", sa.String),
        sa.Column("result_file", sa.String),
        sa.Column("error", sa.JSON),
        sa.Column("worker", sa.String),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
    )
    op.create_index("ix_jobs_project", "jobs", ["project", "number"])
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.create_table(
        "job_events",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("job", sa.String, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("type", sa.String, nullable=False),
        sa.Column("message", sa.String, nullable=False),
        sa.Column("data", sa.JSON),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("id", name="uq_job_events_id"),
        sa.UniqueConstraint("job", "key", name="uq_job_events_key"),
    )
    op.create_index("ix_job_events_job", "job_events", ["job", "number"])
    op.create_table(
        "job_checkpoints",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("job", sa.String, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("id", name="uq_job_checkpoints_id"),
        sa.UniqueConstraint("job", "step", name="uq_job_checkpoints_step"),
    )
    op.create_table(
        "batches",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("caller", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("input_file", sa.String, nullable=False),
        sa.Column("window", sa.String, nullable=False),
        sa.Column("output_expires_after_s", sa.Integer),
        sa.Column("labels", sa.JSON),
        sa.Column("status", sa.String, nullable=False),
        *(
            sa.Column(name, sa.DateTime(timezone=True), nullable=name not in ("created", "expires"))
            for name in (
                "created", "expires", "in_progress", "cancelling", "finalizing", "ended",
            )
        ),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("errors", sa.JSON),
        sa.Column("output_file", sa.String),
        sa.Column("error_file", sa.String),
        sa.Column("server", sa.String),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.UniqueConstraint("id", name="uq_batches_id"),
    )  # fmt: skip
    op.create_index("ix_batches_project", "batches", ["project", "number"])
    op.create_index("ix_batches_status", "batches", ["status"])
    op.create_table(
        "batch_parts",
        sa.Column("batch", sa.String, sa.ForeignKey("batches.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("place", sa.String, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("caller", sa.String, primary_key=True),
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("route", sa.String, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_usage_project", "usage", ["project", "day"])
    op.create_table(
        "usage_reports",
        sa.Column("server", sa.String, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("made", sa.DateTime(timezone=True), nullable=False),
    )
