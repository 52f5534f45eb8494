"""rules that end canaries, scores of answers, and what running servers take"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("canaries", sa.Column("rule", sa.JSON))
    op.create_table(
        "canary_counts",
        sa.Column("server", sa.String, primary_key=True),
        sa.Column("adapter", sa.String, primary_key=True),
        sa.Column("alias", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answers", sa.Integer, nullable=False),
        sa.Column("errors", sa.Integer, nullable=False),
        sa.Column("seconds", sa.JSON, nullable=False),
    )
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter", sa.String, sa.ForeignKey("adapters.name"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("given", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("adapter", "request_id", name="uq_scores_request"),
    )
    op.create_index("ix_scores_version", "scores", ["adapter", "number", "given"])
    op.create_table(
        "servers",
        sa.Column("server", sa.String, primary_key=True),
        sa.Column("base", sa.String, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
