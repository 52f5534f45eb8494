"""The database's tables and how to open it; `migrations/` brings it up to date."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    JSON,
    DateTime,
    Engine,
    ForeignKey,
    Index,
    TypeDecorator,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from adapters.errors import StoreFailed

SCHEMA = "0004"


class Moment(TypeDecorator[datetime]):
    """A time in UTC; SQLite keeps no zone, so it is given back here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON(none_as_null=True),
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
    """The history of aliases; `id` of the last row is the registry's revision."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index("ix_alias_moves_adapter", "adapter", "alias"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str]
    alias: Mapped[str]
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


def open_database(path: Path) -> Engine:
    """Open the SQLite database of a home folder, creating or upgrading it under a lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin_immediate)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current != SCHEMA:
        with _locked(path.with_suffix(".lock")):
            _upgrade(engine)
    return engine


@contextmanager
def told() -> Iterator[None]:
    """What the database can't do is a `StoreFailed`: locked, full, damaged."""
    try:
        yield
    except DatabaseError as error:
        raise StoreFailed(
            f"the database can't be used: {error.orig}",
            hint="free disk space, end what locks modiste.db, or restore it from a backup",
        ) from error


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" event opens transactions
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    immediate = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _upgrade(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Several processes may start at once; one upgrades and the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
