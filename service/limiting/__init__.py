"""Limits of keys and projects: what they are, what counts against them, who is refused."""
