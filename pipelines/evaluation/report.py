"""The report: every score with its spread, the paper's rows beside ours, and images, in one file.

`report.json` holds the numbers; `report.html` shows them and needs no other file.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ce_model.network_config import INPAINTING
from pipelines import html_page
from pipelines.evaluation import charts, paper_results
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.charts import Dot, Group
from pipelines.evaluation.tasks.inpainting import METRICS
from pipelines.tracking.scores import NOT_A_SCORE, better

PERCENT = {"accuracy", "mAP", "mAP 11_points", "mAP all_points", "L1", "L2", "mIoU"}
PERCENT |= {"pixel accuracy", "precision at 1", "precision at 5"}
MAIN_SCORES = ("accuracy", "mAP", "mAP all_points", "mIoU")
FEW = 50  # images, with which a score may be off by several per cent of its value
REGIONS = {"hole": "in the hole", "rim": "in the rim of the hole", "whole": "in the whole image"}
STRIPS = {"context": "input, the hole in grey", "picture": "target"}


class Grid(NamedTuple):
    """A table as text."""

    caption: str
    head: list[str]
    cells: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the best value of each column that has several."""


def page(report: dict[str, Any], figures: dict[str, dict[str, bytes]]) -> str:
    """The whole HTML page.

    Args:
        report: what `report.json` holds.
        figures: PNG by title, for every task.
    """
    parts = [_models(report["models"])]
    summary = overview(report["sections"])
    if summary.cells:
        parts.append(_table(summary))
    for section in report["sections"]:
        parts.append(_section(section, report["models"], figures.get(section["title"], {})))
    if summary.cells:
        parts.append(_transfer(report))
    about = (
        f"<p class='note'>Seeds {html_page.text(', '.join(map(str, report['seeds'])))}; a score is "
        "a mean, with the standard deviation over seeds and repetitions where there are several. "
        "The best value of a column is marked; n/a: not measured. Rows in italics are quoted from "
        "the paper, not measured here.</p>"
    )
    return html_page.document(heading(report), about + "".join(parts))


def heading(report: dict[str, Any]) -> str:
    """`Evaluation of unet on photos`; of many models or data their number."""
    models = [model["name"] for model in report["models"]] or ["classical methods"]
    parts = (section["title"].partition(", ")[2] for section in report["sections"])
    data = _distinct(part for part in parts if part)
    on = f" on {_few(data, 'datasets')}" if data else ""
    return f"Evaluation of {_few(models, 'models')}{on}"


def _few(names: list[str], what: str) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} {what}"


def _models(rows: list[dict[str, Any]]) -> str:
    cells = [
        [row["name"], row["kind"], row["network"], row["origin"], row["sha256"][:12]]
        for row in rows
    ]
    return _table(Grid("models", ["row", "kind", "network", "origin", "sha256"], cells), "texts")


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
    nothing = (-1.0, "n/a")
    found = [[column.get(name, nothing) for column in columns] for name in names]
    cells = [[name, *(text for _, text in row)] for name, row in zip(names, found, strict=True)]
    best = set()
    for place in range(len(columns)):
        values = [row[place][0] for row in found]
        if len(set(values)) > 1:
            best |= {(at, place + 1) for at, value in enumerate(values) if value == max(values)}
    return Grid("overview", ["row", *heads], cells, frozenset(best))


def _main_scores(section: dict[str, Any]) -> dict[str, tuple[float, str]]:
    rows = _most_labels([row for row in section["rows"] if row["model"]])
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        for score in MAIN_SCORES:
            mean = row.get(score, {"mean": None})["mean"]
            if mean is not None and mean > best.get(row["model"], (-1.0, ""))[0]:
                layer = f" ({row['layer']})" if "layer" in row else ""
                best[row["model"]] = (mean, _cell(score, row[score]) + layer)
    return best


def _most_labels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the largest share of the labels; all of them where there are no shares."""
    shares = [_share(row) for row in rows]
    return [row for row, share in zip(rows, shares, strict=True) if share == max(shares)]


def _share(row: dict[str, Any]) -> float:
    """The number in `10%` or `10% (30)`, with the images behind it."""
    return float(row["labels"].partition("%")[0]) if "labels" in row else 0.0


def transfer_rows(report: dict[str, Any]) -> list[tuple[list[str], bool]]:
    """The paper's second table with our rows, each below the quoted one with its pretext.

    Returns:
        cells, and whether they are quoted.
    """
    names = list(paper_results.COLUMNS)
    models = {model["name"]: model for model in report["models"]}  # repetitions are one row
    left = [(row, model) for model in models.values() if (row := _own_transfer(report, model))]
    found = []
    for quoted in paper_results.TRANSFER:
        found.append(([quoted["row"], *(_value(n, quoted.get(n), 100) for n in names)], True))
        if "pretext" in quoted:
            same = [pair for pair in left if _pretext_of(pair[1]) == quoted["pretext"]]
            found += [(cells, False) for cells, _ in same]
            left = [pair for pair in left if pair not in same]
    return [*found, *((cells, False) for cells, _ in left)]


def _pretext_of(model: dict[str, Any]) -> str:
    """Of an untrained model none."""
    return model.get("pretext", INPAINTING) if model.get("kind") == "model" else ""


def _own_transfer(report: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """The cells of a model; nothing where no column was measured of it."""
    cells = []
    for task, scores in paper_results.COLUMNS.values():
        rows = [
            row
            for section in report["sections"]
            if section["task"] == task
            for row in _most_labels([r for r in section["rows"] if r["model"] == model["name"]])
        ]
        measured = [(n, row[n]) for row in rows for n in scores if isinstance(row.get(n), dict)]
        cells.append(_cell(*measured[0]) if measured else "n/a")
    return [] if set(cells) == {"n/a"} else [f"{model['name']} (ours)", *cells]


def _transfer(report: dict[str, Any]) -> str:
    rows = transfer_rows(report)
    ours = any(not is_quoted for _, is_quoted in rows)
    caption = f"the paper's second table (quoted{', in italics' if ours else ''})"
    table = html_page.table(
        caption,
        ["row", *paper_results.COLUMNS],
        [cells for cells, _ in rows],
        quoted={number for number, (_, is_quoted) in enumerate(rows) if is_quoted},
    )
    note = f"{paper_results.TABLE_2}. {paper_results.DIFFERENCES['finetune'] if ours else ''}"
    return table + f"<p class='note'>{html_page.text(note.strip())}</p>"


def _section(
    section: dict[str, Any], models: list[dict[str, Any]], figures: dict[str, bytes]
) -> str:
    task, rows = section["task"], section["rows"]
    parts = [
        f"<h2>{html_page.text(section['title'])}</h2>",
        f"<p class='note'>{html_page.text(section['about'])}</p>",
    ]
    parts += _how_many(section)
    if TASKS[task].across == "layer":
        parts.append(html_page.chart("by layer", charts.lines(_most_labels(rows))))
    elif groups := groups_of(section):
        parts.append(html_page.chart("all rows, the best on top", charts.dots(groups)))
    if task == "inpainting":
        parts += _absent(section, models)
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


def scored_images(section: dict[str, Any]) -> int | None:
    """How many images the scores are about; None of a task that did not note it."""
    counts = [row["pictures"]["mean"] for row in section["rows"] if row.get("hidden") == "any"]
    if counts:
        return int(max(count or 0 for count in counts))
    notes = [str(note.get("images", note.get("pictures"))) for note in section["notes"].values()]
    found = [match for note in notes if (match := re.search(r"(\d+) to score", note))]
    return min((int(match[1]) for match in found), default=None)


def _how_many(section: dict[str, Any]) -> Iterator[str]:
    """The number of images, and a warning where it is small."""
    count = scored_images(section)
    if count is None:
        return
    if count >= FEW:
        yield f"<p class='note'>Scored on {count:,} images.</p>"
        return
    yield (
        f"<p class='warning'>Scored on {count:,} images only: differences of a few per cent may be "
        "chance. Measure on more of them, or with more seeds, before you choose.</p>"
    )


def _absent(section: dict[str, Any], models: list[dict[str, Any]]) -> Iterator[str]:
    """Why a model fills no hole here, or none of some kind."""
    rows = section["rows"]
    kinds = _distinct(row["holes"] for row in rows)
    for model in _distinct((model["name"], model["kind"]) for model in models):
        name, kind = model
        own = [row for row in rows if row["model"] == name]
        if not own:
            why = "it was never trained to fill holes" if kind.startswith("random") else "no result"
            yield f"<p class='note'>{html_page.text(name)} has no row: {why}.</p>"
        lacking = [each for each in kinds if each not in [row["holes"] for row in own]]
        if own and lacking:
            text = (
                f"{name} has no row for {', '.join(lacking)} holes: it predicts other holes only."
            )
            yield f"<p class='note'>{html_page.text(text)}</p>"


def groups_of(section: dict[str, Any]) -> list[Group]:
    """What the chart of a section compares: the main score of every row, by kind of hole or share
    of the labels; of regions the hole alone."""
    task = TASKS[section["task"]]
    rows = [row for row in section["rows"] if row.get("region", "hole") == "hole"]
    rows = [row for row in rows if row.get("hidden", "any") == "any"]
    names = (*task.tables, *((task.across,) if task.across else ()))
    groups = []
    for kind in _distinct(tuple(row.get(name, "") for name in names) for row in rows):
        chosen = [r for r in rows if tuple(r.get(n, "") for n in names) == kind]
        score = next((n for n in ("PSNR", *MAIN_SCORES) if _is_score(chosen, n)), None)
        score = score or next((n for row in chosen for n in row if _is_score(chosen, n)), "")
        scale = 100 if score in PERCENT else 1
        found = [
            Dot(_row_name(row), scale * row[score]["mean"], scale * (row[score]["std"] or 0))
            for row in chosen
            if isinstance(row.get(score), dict) and row[score]["mean"] is not None
        ]
        if found:
            unit = "dB" if score == "PSNR" else "%" if scale == 100 else ""
            title = _caption(names, kind)
            groups.append(Group(title, f"{score}, {unit}".rstrip(", "), found))
    return groups


def _caption(names: Sequence[str], values: Sequence[str]) -> str:
    """What a table or a chart shows: `central holes, 128 px, in the hole`."""
    words = []
    for name, value in zip(names, values, strict=True):
        if name == "holes":
            words.append(f"{value} holes")
        elif name == "side":
            words.append(f"{value} px")
        elif name == "region":
            words.append(REGIONS.get(value, value))
        elif name == "hidden":
            words += [] if value == "any" else [f"images with {value} hidden"]
        else:
            words.append(f"{name} {value}")
    return ", ".join(words)


def _by_holes(section: dict[str, Any], figures: dict[str, bytes]) -> Iterator[str]:
    """Of every kind of hole the filled images, and below them the tables."""
    for kind in _distinct((row["holes"], row["side"]) for row in section["rows"]):
        holes, side = kind
        yield f"<h3>{html_page.text(holes)} holes, {html_page.text(side)} px</h3>"
        prefix = f"{holes} {side} px | "
        for title, data in figures.items():
            if title.startswith(prefix):
                name = title.removeprefix(prefix)
                yield html_page.image(STRIPS.get(name, name), data)
        rows = [row for row in section["rows"] if (row["holes"], row["side"]) == kind]
        for grid in grids({**section, "rows": rows}):
            yield _table(grid._replace(caption=grid.caption.partition(" px, ")[2]))


def grids(section: dict[str, Any]) -> list[Grid]:
    """The tables of a section; none for a share of hidden pixels that no image had."""
    task = TASKS[section["task"]]
    rows = [row for row in section["rows"] if row.get("pictures", {}).get("mean") != 0]
    found = []
    for group in _distinct(tuple(row.get(name, "") for name in task.tables) for row in rows):
        chosen = [r for r in rows if tuple(r.get(n, "") for n in task.tables) == group]
        caption = _caption(task.tables, group)
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
        by_name = {_row_name(row): row for row in rows}
        scores = [[by_name[name].get(column) for column in columns] for name in names]
        heads = ["images" if column == "pictures" else column for column in columns]
        return _filled(caption, heads, columns, names, scores)
    columns = _distinct(row[across] for row in rows)
    metric = next(n for n in rows[0] if _is_score(rows, n))
    found = {(_row_name(row), row[across]): row[metric] for row in rows}
    label = ", ".join(part for part in (metric, caption) if part)
    scores = [[found.get((name, column)) for column in columns] for name in names]
    return _filled(label, columns, [metric] * len(columns), names, scores)


def _filled(
    caption: str,
    heads: Sequence[str],
    metrics: Sequence[str],
    names: Sequence[str],
    scores: Sequence[Sequence[dict[str, Any] | None]],
) -> Grid:
    """A table of scores, a metric per column, with the best of each column marked."""
    cells = [
        [name, *(_cell(metric, score) for metric, score in zip(metrics, row, strict=True))]
        for name, row in zip(names, scores, strict=True)
    ]
    best = set()
    for column, metric in enumerate(metrics, 1):
        found = [row[column - 1] for row in scores]
        means = [score["mean"] for score in found if score and score["mean"] is not None]
        shown = {row[column] for row in cells} - {"n/a"}
        if metric in NOT_A_SCORE or len(shown) < 2:
            continue
        top = min(means) if better(metric) == "lower" else max(means)
        best |= {(at, column) for at, score in enumerate(found) if score and score["mean"] == top}
    return Grid(caption, ["row", *heads], cells, frozenset(best))


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


def _table(grid: Grid, row_class: str = "") -> str:
    return html_page.table(grid.caption, grid.head, grid.cells, row_class, best=grid.best)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
