"""Alembic's folder: one history for the whole database."""
