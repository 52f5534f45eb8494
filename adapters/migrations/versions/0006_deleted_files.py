"""files that were deleted, as places in a list"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("files", sa.Column("deleted", sa.DateTime(timezone=True)))
    op.create_index("ix_files_deleted", "files", ["deleted"])
