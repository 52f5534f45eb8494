"""scopes of keys, limits of keys and projects, and what counts against them"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"

LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent")
EVERYTHING = "infer train admin"
"""What each key could do before there were scopes."""


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("scopes", sa.String, nullable=False, server_default=EVERYTHING))
        for name in LIMITS:
            keys.add_column(sa.Column(name, sa.BigInteger))
    with op.batch_alter_table("api_keys") as keys:  # a key made from here on names its own
        keys.alter_column("scopes", server_default=None)
    for name in LIMITS:
        op.add_column("projects", sa.Column(name, sa.BigInteger))
    op.create_table(
        "limit_uses",
        sa.Column("subject", sa.String, primary_key=True),
        sa.Column("second", sa.BigInteger, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("last", sa.String, nullable=False),
    )
    op.create_table(
        "limit_holds",
        sa.Column("subject", sa.String, primary_key=True),
        sa.Column("request", sa.String, primary_key=True),
        sa.Column("server", sa.String, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
