"""The report: every score with its spread, the paper's rows beside ours, and images, in one file.

`report.json` holds the numbers; `report.html` shows them and needs no other file.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pipelines import html_page
from pipelines.evaluation import paper_results
from pipelines.evaluation.config import TASKS
from pipelines.evaluation.tasks.inpainting import METRICS

PERCENT = {"accuracy", "mAP", "mAP 11_points", "mAP all_points", "L1", "L2", "mIoU"}
PERCENT |= {"pixel accuracy", "precision at 1", "precision at 5"}
MAIN_SCORES = ("accuracy", "mAP", "mAP all_points", "mIoU")


class Grid(NamedTuple):
    """A table as text."""

    caption: str
    head: list[str]
    cells: list[list[str]]


def page(report: dict[str, Any], figures: dict[str, dict[str, bytes]]) -> str:
    """The whole HTML page.

    Args:
        report: what `report.json` holds.
        figures: PNG by title, for every task.
    """
    parts = [_models(report["models"])]
    if (summary := overview(report["sections"])).cells:
        parts += [_table(summary), _quoted_transfer()]
    for section in report["sections"]:
        parts.append(_section(section, figures.get(section["title"], {})))
    about = (
        f"<p class='note'>Seeds {html_page.text(', '.join(map(str, report['seeds'])))}; a score is "
        "a mean, with the standard deviation over seeds and repetitions where there are several. "
        "Rows in italics are quoted from the paper, not measured here.</p>"
    )
    return html_page.document("Evaluation of context encoders", about + "".join(parts))


def _models(rows: list[dict[str, Any]]) -> str:
    cells = [
        [row["name"], row["kind"], row["network"], row["origin"], row["sha256"][:12]]
        for row in rows
    ]
    return _table(Grid("models", ["row", "kind", "network", "origin", "sha256"], cells))


def overview(sections: list[dict[str, Any]]) -> Grid:
    """Every model's main score on every task; of several layers the best, of shares the largest."""
    heads, columns = [], []
    for section in sections:
        main = TASKS[section["task"]].main
        if main is None:
            continue
        heads.append(f"{section['title']}: {main}")
        columns.append(_main_scores(section))
    names = _distinct(name for column in columns for name in column)
    cells = [[name, *(column.get(name, "n/a") for column in columns)] for name in names]
    return Grid("overview", ["row", *heads], cells)


def _main_scores(section: dict[str, Any]) -> dict[str, str]:
    rows = _most_labels([row for row in section["rows"] if row["model"]])
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        for score in MAIN_SCORES:
            mean = row.get(score, {"mean": None})["mean"]
            if mean is not None and mean > best.get(row["model"], (-1.0, ""))[0]:
                layer = f" ({row['layer']})" if "layer" in row else ""
                best[row["model"]] = (mean, _cell(score, row[score]) + layer)
    return {name: text for name, (_, text) in best.items()}


def _most_labels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the largest share of the labels; all of them where there are no shares."""
    shares = [_share(row) for row in rows]
    return [row for row, share in zip(rows, shares, strict=True) if share == max(shares)]


def _share(row: dict[str, Any]) -> float:
    """The number in `10%` or `10% (30)`, with the images behind it."""
    return float(row["labels"].partition("%")[0]) if "labels" in row else 0.0


def _quoted_transfer() -> str:
    names = ["classification", "detection", "segmentation"]
    cells = [
        [row["row"], *(_value(n, row.get(n), 100) for n in names)] for row in paper_results.TRANSFER
    ]
    grid = Grid("the paper's second table (quoted)", ["row", *names], cells)
    return (
        _table(grid, row_class="quoted")
        + f"<p class='note'>{html_page.text(paper_results.TABLE_2)}.</p>"
    )


def _section(section: dict[str, Any], figures: dict[str, bytes]) -> str:
    task, rows = section["task"], section["rows"]
    parts = [
        f"<h2>{html_page.text(section['title'])}</h2>",
        f"<p class='note'>{html_page.text(section['about'])}</p>",
    ]
    if TASKS[task].across == "layer":
        parts.append(html_page.chart("by layer", chart(rows)))
    if task == "inpainting":
        parts += _by_holes(section, figures)
    else:
        parts += [html_page.image(title, data) for title, data in figures.items()]
        parts += [_table(grid) for grid in grids(section)]
    found, names = paper_results.rows_for(task)
    if found:
        scale = 1 if task == "inpainting" else 100
        cells = [
            [row["row"], *(_value(n, row.get(n), scale if n != "PSNR" else 1) for n in names)]
            for row in found
        ]
        grid = Grid("the paper's rows (quoted)", ["row", *names], cells)
        parts.append(_table(grid, row_class="quoted"))
        parts.append(f"<p class='note'>{html_page.text(paper_results.DIFFERENCES[task])}</p>")
    if section["notes"]:
        notes = "\n".join(f"{name}: {value}" for name, value in section["notes"].items())
        shown = f"<pre>{html_page.text(notes)}</pre>"
        parts.append(f"<details><summary>settings and choices</summary>{shown}</details>")
    return "".join(parts)


def _by_holes(section: dict[str, Any], figures: dict[str, bytes]) -> Iterator[str]:
    """Of every kind of hole the filled images, and below them the tables."""
    for kind in _distinct((row["holes"], row["side"]) for row in section["rows"]):
        holes, side = kind
        yield f"<h3>{html_page.text(holes)} holes, {html_page.text(side)} px</h3>"
        prefix = f"{holes} {side} px | "
        for title, data in figures.items():
            if title.startswith(prefix):
                yield html_page.image(title.removeprefix(prefix), data)
        rows = [row for row in section["rows"] if (row["holes"], row["side"]) == kind]
        yield from map(_table, grids({**section, "rows": rows}))


def grids(section: dict[str, Any]) -> list[Grid]:
    """The tables of a section; none for a share of hidden pixels that no image had."""
    task = TASKS[section["task"]]
    rows = [row for row in section["rows"] if row.get("pictures", {}).get("mean") != 0]
    found = []
    for group in _distinct(tuple(row.get(name, "") for name in task.tables) for row in rows):
        chosen = [r for r in rows if tuple(r.get(n, "") for n in task.tables) == group]
        named = zip(task.tables, group, strict=True)
        caption = ", ".join(f"{name} {value}" for name, value in named)
        found.append(_grid(section["task"], caption, chosen, task.across))
    return found


def main_grid(section: dict[str, Any]) -> Grid:
    """The table that stands for a section: the first, or that of the largest share of labels."""
    if "labels" in TASKS[section["task"]].tables:
        section = {**section, "rows": _most_labels(section["rows"])}
    return grids(section)[0]


def _grid(task: str, caption: str, rows: list[dict[str, Any]], across: str | None) -> Grid:
    names = _distinct(_row_name(row) for row in rows)
    if across is None:
        columns = [n for n in _distinct(n for r in rows for n in r) if _is_score(rows, n)]
        if task == "inpainting":
            columns = [*METRICS, "pictures"]
        table = {_row_name(row): [_cell(n, row.get(n)) for n in columns] for row in rows}
        return Grid(caption, ["row", *columns], [[n, *table[n]] for n in names])
    columns = _distinct(row[across] for row in rows)
    metric = next(n for n in rows[0] if _is_score(rows, n))
    cells = {(_row_name(row), row[across]): _cell(metric, row[metric]) for row in rows}
    label = ", ".join(part for part in (metric, caption) if part)
    body = [[name, *(cells.get((name, c), "n/a") for c in columns)] for name in names]
    return Grid(label, ["row", *columns], body)


def _row_name(row: dict[str, Any]) -> str:
    """The model, or the way to fill a hole."""
    method = str(row.get("method", ""))
    if not row["model"]:
        return method
    return f"{row['model']}: {method}" if method.startswith("neighbour") else str(row["model"])


def _is_score(rows: list[dict[str, Any]], name: str) -> bool:
    return any(isinstance(row.get(name), dict) for row in rows)


def _cell(name: str, score: dict[str, Any] | None) -> str:
    if score is None or score["mean"] is None:
        return "n/a"
    if name == "pictures":
        return f"{score['mean']:.0f}"
    text = _value(name, score["mean"])
    return text if score["std"] is None else f"{text} \u00b1 {_value(name, score['std'])}"


def _value(name: str, value: float | None, percent: float = 1) -> str:
    if value is None:
        return "n/a"
    value /= percent
    if name in PERCENT or percent == 100:
        return f"{value:.2%}" if name in METRICS else f"{value:.1%}"
    return f"{value:.2f}" if name == "PSNR" else f"{value:.3f}"


def chart(rows: list[dict[str, Any]]) -> Figure:
    """Lines over the layers, one per model, with the spread over seeds (most labels)."""
    rows = _most_labels(rows)
    layers = _distinct(row["layer"] for row in rows)
    figure = Figure(figsize=(8, 4), dpi=100, layout="tight")
    axes = figure.subplots()
    for number, name in enumerate(_distinct(str(row["model"]) for row in rows)):
        scores = {row["layer"]: row["accuracy"] for row in rows if row["model"] == name}
        present = [layer for layer in layers if layer in scores]
        axes.errorbar(
            [layers.index(layer) for layer in present],
            [100 * scores[layer]["mean"] for layer in present],
            yerr=[100 * (scores[layer]["std"] or 0) for layer in present],
            marker="osD^v<>PX*"[number % 10],
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(layers)), layers)
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return figure


def _table(grid: Grid, row_class: str = "") -> str:
    return html_page.table(grid.caption, grid.head, grid.cells, row_class)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
