"""Alembic's entry: runs on the connection that `adapters.database` gives it."""

from alembic import context

from adapters.database import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
