"""The frame of our HTML pages, which need nothing else."""

from collections.abc import Iterable
from html import escape


def page(title: str, parts: Iterable[str], style: str, *, images: bool = False) -> str:
    """A whole page of parts that are HTML already; the browser is told to run and fetch nothing.

    Args:
        images: there may be some in `data:` addresses.
    """
    body = "\n".join(part for part in parts if part)
    policy = "default-src 'none'; style-src 'unsafe-inline'" + ("; img-src data:" if images else "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )
