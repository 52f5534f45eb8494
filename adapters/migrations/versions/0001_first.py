"""bases, adapters, versions, aliases and their history"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "bases",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("record", sa.JSON, nullable=False),
        sa.Column("is_default", sa.Boolean, nullable=False),
        sa.Column("created", moment, nullable=False),
    )
    op.create_table(
        "adapters",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("created", moment, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter", sa.String, sa.ForeignKey("adapters.name"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("created", moment, nullable=False),
        sa.UniqueConstraint("adapter", "number", name="uq_versions_number"),
        sa.UniqueConstraint("adapter", "digest", name="uq_versions_digest"),
    )
    op.create_table(
        "aliases",
        sa.Column("adapter", sa.String, sa.ForeignKey("adapters.name"), primary_key=True),
        sa.Column("alias", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("moved", moment, nullable=False),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter", sa.String, nullable=False),
        sa.Column("alias", sa.String, nullable=False),
        sa.Column("from_number", sa.Integer),
        sa.Column("to_number", sa.Integer, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("why", sa.String, nullable=False),
        sa.Column("moved", moment, nullable=False),
    )
    op.create_index("ix_alias_moves_adapter", "alias_moves", ["adapter", "alias"])
