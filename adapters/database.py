"""The database's tables; `migrations/` brings a database up to date with them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Index, TypeDecorator, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "0008"


class Moment(TypeDecorator[datetime]):
    """A time in UTC: SQLite keeps no zone, PostgreSQL answers in the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        if value is None or value.tzinfo is None:
            return value if value is None else value.replace(tzinfo=UTC)
        return value.astimezone(UTC)


class Table(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
        datetime: Moment,
    }


class BaseRow(Table):
    __tablename__ = "bases"
    name: Mapped[str] = mapped_column(primary_key=True)
    record: Mapped[dict[str, Any]]
    is_default: Mapped[bool] = mapped_column(default=False)
    created: Mapped[datetime]


class AdapterRow(Table):
    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    task: Mapped[str]
    created: Mapped[datetime]


class VersionRow(Table):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter", "number", name="uq_versions_number"),
        UniqueConstraint("adapter", "digest", name="uq_versions_digest"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"))
    number: Mapped[int]
    digest: Mapped[str]
    state: Mapped[str] = mapped_column(default="ready")
    reason: Mapped[str] = mapped_column(default="")
    created: Mapped[datetime]


class AliasRow(Table):
    __tablename__ = "aliases"
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"), primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    moved: Mapped[datetime]


class AliasMoveRow(Table):
    """The history of aliases and retirements; the last row's `id` is the registry's revision."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index("ix_alias_moves_adapter", "adapter", "alias"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str]
    alias: Mapped[str]
    """Empty: the version was retired, and no alias moved."""
    from_number: Mapped[int | None]
    to_number: Mapped[int]
    who: Mapped[str]
    why: Mapped[str]
    moved: Mapped[datetime]
    rollback: Mapped[bool] = mapped_column(default=False)
    percent: Mapped[float | None]
    """Of a canary: its share from here on, 0 at its end; else the alias itself moved."""


class CanaryRow(Table):
    """A version that gets a share of an alias's requests."""

    __tablename__ = "canaries"
    adapter: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    percent: Mapped[float]
    started: Mapped[datetime]
    rule: Mapped[dict[str, Any] | None]


class CanaryCountRow(Table):
    """What one server answered by one side of a canary since it started."""

    __tablename__ = "canary_counts"
    server: Mapped[str] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started: Mapped[datetime]
    """Of the canary: counts of an older one are not this one's."""
    answers: Mapped[int]
    errors: Mapped[int]
    seconds: Mapped[dict[str, Any]]
    """Histogram: number of a bucket to its answers."""


class ScoreRow(Table):
    """What somebody thought of an answer, 0 to 1."""

    __tablename__ = "scores"
    __table_args__ = (
        UniqueConstraint("adapter", "request_id", name="uq_scores_request"),
        Index("ix_scores_version", "adapter", "number", "given"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"))
    number: Mapped[int]
    request_id: Mapped[str]
    score: Mapped[float]
    who: Mapped[str]
    given: Mapped[datetime]


class LeaseRow(Table):
    """A version that a running server uses or is about to load."""

    __tablename__ = "leases"
    server: Mapped[str] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    until: Mapped[float]
    """Seconds since 1970."""


class ServerRow(Table):
    """A running server, and what its engine takes."""

    __tablename__ = "servers"
    server: Mapped[str] = mapped_column(primary_key=True)
    base: Mapped[str]
    """Fingerprint of its base model."""
    limits: Mapped[dict[str, Any]]
    until: Mapped[float]
    """Seconds since 1970; a server that is killed runs out."""
