"""Parts of a report in one HTML file that needs no other: tables, images, escaped text."""

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tasks of `prepare` import this module and draw nothing
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em;
  color: #1c1c1c; background: #fff; }
table { border-collapse: collapse; margin: .7em 0 1.6em; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #555; }
tr.facts td:first-child { white-space: nowrap; }
tr.facts td:last-child { text-align: left; overflow-wrap: anywhere; }
tr.quoted td { color: #666; font-style: italic; }
caption { text-align: left; font-weight: 600; padding: .3em 0; }
figure { margin: .4em 0; } figcaption { font-size: 13px; color: #444; }
img { max-width: 100%; }
.verdict { font-size: 17px; font-weight: 600; }
.note { color: #444; max-width: 60em; } details { margin: .5em 0; }
pre { white-space: pre-wrap; font-size: 12px; background: #f6f6f6; padding: .8em; }
"""


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{text(title)}</title><style>{STYLE}</style><h1>{text(title)}</h1>{body}</html>\n"
    )


def table(caption: str, heads: list[str], rows: list[list[str]], row_class: str = "") -> str:
    """A table of plain text."""
    kind = f" class='{row_class}'" if row_class else ""
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join(
        f"<tr{kind}>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def image(title: str, data: bytes, kind: str = "png") -> str:
    """An image with its title, inside the page; `kind` is png or jpeg."""
    source = base64.b64encode(data).decode()
    return (
        f"<figure><figcaption>{text(title)}</figcaption>"
        f"<img alt='{text(title)}' src='data:image/{kind};base64,{source}'></figure>"
    )


def chart(title: str, figure: "Figure") -> str:
    """A drawing with its title, inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return image(title, buffer.getvalue())


def text(value: object) -> str:
    """Anything as text between tags or in an attribute."""
    return html.escape(str(value), quote=True)
