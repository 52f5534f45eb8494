"""Backups of a home folder, its database and its store, and how they come back."""
