"""rollbacks in the history of aliases; leases of running servers on versions"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "alias_moves",
        sa.Column("rollback", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "leases",
        sa.Column("server", sa.String, primary_key=True),
        sa.Column("adapter", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("until", sa.Double, nullable=False),
    )
