"""Parts of a report in one HTML file that needs no other: tables, images, escaped text.

Pages are read in the dark and in the light, and on a telephone: what is wide scrolls by itself.
"""

import base64
import html
import io
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # tasks of `prepare` import this module and draw nothing
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #555; --page: #fff; --line: #ddd;
  --head: #777; --box: #f4f4f2; --best: #e4f2e4; --warn: #fdf1d8; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e6e3; --soft: #b0aca6; --page: #17181a;
  --line: #3a3c3f; --head: #8a8d91; --box: #222427; --best: #1f3d27; --warn: #463a1c;
  --link: #8ab8ee; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em;
  color: var(--text); background: var(--page); }
a { color: var(--link); } h1 { line-height: 1.2; }
h1, h2, h3, p, figcaption { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .7em 0 1.6em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: .3em; }
thead th { border-bottom: 2px solid var(--head); }
td:not(:first-child):not(:last-child) { white-space: nowrap; }
td.best { background: var(--best); font-weight: 600; }
tr.facts td:first-child { white-space: nowrap; vertical-align: top; }
tr.facts td:last-child { text-align: left; overflow-wrap: anywhere; }
table.texts :is(th, td) { text-align: left; vertical-align: top; white-space: normal; }
tr.quoted td { color: var(--soft); font-style: italic; }
caption { text-align: left; font-weight: 600; padding: .3em 0; }
figure { margin: .4em 0; } figcaption { font-size: 13px; color: var(--soft); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 3px; }
.verdict { font-size: 17px; font-weight: 600; }
.note { color: var(--soft); max-width: 60em; } details { margin: .5em 0; }
.warning { background: var(--warn); padding: .5em .8em; border-radius: 4px; max-width: 60em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; background: var(--box);
  padding: .8em; border-radius: 4px; }
@media (max-width: 600px) { body { margin: 1em auto; padding: 0 .7em; } h1 { font-size: 1.5em; }
  th, td { padding: .25em .45em; } tr.facts td:first-child { white-space: normal; } }
"""


class Link(NamedTuple):
    """A cell of a table that leads somewhere."""

    label: str
    href: str


def document(title: str, body: str, style: str = "") -> str:
    """A whole page; `body` is HTML, `style` CSS beside that of all pages."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{text(title)}</title><style>{STYLE}{style}</style>"
        f"<h1>{text(title)}</h1>{body}</html>\n"
    )


def table(
    caption: str,
    heads: list[str],
    rows: Sequence[Sequence[str | Link]],
    row_class: str = "",
    *,
    best: Collection[tuple[int, int]] = (),
    quoted: Collection[int] = (),
) -> str:
    """A table of plain text and links.

    Args:
        caption: what it shows.
        heads: of the columns.
        rows: cells.
        row_class: facts, texts or quoted; numbers otherwise.
        best: cells to mark, each by row and column.
        quoted: numbers of the rows that are not ours, where only some are.
    """
    kind = f" class='{text(row_class)}'" if row_class else ""
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join(
        f"<tr{' class=quoted' if number in quoted else kind}>"
        + "".join(
            f"<td{' class=best' if (number, place) in best else ''}>{_cell(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f"<div class='scroll'><table{kind}><caption>{text(caption)}</caption><thead><tr>{head}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: str | Link) -> str:
    return link(cell) if isinstance(cell, Link) else text(cell)


def link(to: Link) -> str:
    """A link; its label is plain text."""
    return f"<a href='{text(to.href)}'>{text(to.label)}</a>"


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
