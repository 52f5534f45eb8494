"""HTML without other files: a page and its tables."""

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.fails { color: #b00020; font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots svg { width: 36rem; height: auto; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page; the parts are HTML."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are text; one that begins with FAIL stands out."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return f'<span class="fails">{escape(text)}</span>' if text.startswith("FAIL") else escape(text)
