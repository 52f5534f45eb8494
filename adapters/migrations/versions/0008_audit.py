"""the audit log, which is only added to, and projects that are being deleted"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

# A row goes only when another one says so: what retention removes leaves its own row. SQLite's
# REPLACE removes rows without asking a trigger for deletions, so insertions are looked at too.
_SQLITE = (
    """
    CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
    """,
    """
    CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
    WHEN NOT EXISTS (SELECT 1 FROM audit WHERE through >= OLD.number)
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
    """,
    """
    CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit
    WHEN EXISTS (SELECT 1 FROM audit WHERE number = NEW.number OR id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
    """,
)
_POSTGRESQL = (
    """
    CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            IF EXISTS (SELECT 1 FROM audit WHERE through >= OLD.number) THEN
                RETURN OLD;
            END IF;
        END IF;
        RAISE EXCEPTION 'the audit log is append-only';
    END $$
    """,
    """
    CREATE TRIGGER audit_is_not_changed BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()
    """,
    """
    CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()
    """,
)


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("made", sa.DateTime(timezone=True), nullable=False),
        sa.Column("act", sa.String, nullable=False),
        sa.Column("what", sa.String, nullable=False),
        sa.Column("project", sa.String),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("caller_project", sa.String),
        sa.Column("request_id", sa.String),
        sa.Column("through", sa.Integer),
        sa.UniqueConstraint("id", name="uq_audit_id"),
        sa.CheckConstraint("through < number", name="ck_audit_through"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_project", "audit", ["project", "number"])
    op.create_index("ix_audit_through", "audit", ["through"])
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in _SQLITE if sqlite else _POSTGRESQL:
        op.execute(statement)
    op.add_column("projects", sa.Column("deleting", sa.DateTime(timezone=True)))
