"""canaries: a share of an alias's requests for another version"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("alias_moves", sa.Column("percent", sa.Double))
    op.create_table(
        "canaries",
        sa.Column("adapter", sa.String, primary_key=True),
        sa.Column("alias", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("percent", sa.Double, nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
    )
