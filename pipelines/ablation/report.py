"""ablation.html: verdict, curves, images, every score with its spread, costs; in one file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from ce_model.network_config import INPAINTING
from pipelines import html_page
from pipelines.ablation.comparison import with_spread
from pipelines.data.source_names import source_name
from pipelines.errors import counted

FEW_SEEDS = 3
FEW_POINTS = 20  # of a curve: each is drawn, and a single one is seen at all
TARGET_ERROR = "validation/target_error"
PSNR = "validation/psnr_hole"  # the curve of reports that do not name theirs


def page(found: Mapping[str, Any], panels: Mapping[str, bytes]) -> str:
    """The whole page, which needs no other file.

    Args:
        found: what `ablation.json` holds.
        panels: PNG by arm, of the same validation images.
    """
    decisive = found["comparisons"].get(found["metric"])
    parts = [
        f"<p class='verdict'>{html_page.text(found['verdict'])}</p>",
        f"<p class='note'>{counted(len(found['arms']), 'arm')} x "
        f"{counted(found['seeds'], 'seed')}, {found['steps']} steps each, on "
        f"{html_page.text(_data(found))} (fingerprint "
        f"{html_page.text(found['dataset_fingerprint'][:16])}), commit "
        f"{html_page.text(found['code'])}. Equal data, holes, steps and evaluation; a seed fixes "
        "weights and order. Intervals hold for all pairs at once (Tukey, seeds as blocks, pooled "
        "residual spread); arms whose interval includes zero share their rank.</p>",
        *_halving(found),
        *_warnings(found),
        *(_decisive(found, decisive) if decisive else ()),
        *_by_setting(found),
        "<h2>Learning curves</h2>",
        *(
            html_page.chart(f"{_curve_title(found)}{which}", curves(found, arms))
            for which, arms in _comparable(found).items()
        ),
        "<h2>The same images, filled by each arm</h2>",
        *(html_page.image(arm, data) for arm, data in panels.items()),
        "<h2>All scores</h2>",
        "<p class='note'>Mean and standard deviation over the seeds; in brackets the rank, 1 for "
        "all that cannot be told from the best.</p>",
        *_all_scores(found),
        "<h2>Cells</h2>",
        _cells(found["cells"]),
    ]
    body = "".join(parts).replace(" +- ", " &plusmn; ")  # a terminal may have no such letter
    return html_page.document(heading(found), body)


def heading(found: Mapping[str, Any]) -> str:
    """What is compared, on which data."""
    return f"Comparison of masks and losses on {_data(found)}"


def _data(found: Mapping[str, Any]) -> str:
    """What the dataset is called; of a report of an earlier version its fingerprint."""
    if "source" in found:
        return source_name(found["source"])
    return f"dataset {found['dataset_fingerprint'][:8]}"


def _curve_name(found: Mapping[str, Any]) -> str:
    """What the learning curves show, with its unit."""
    if found.get("curve", PSNR) == PSNR:
        return "validation PSNR in the hole, dB"
    if found["curve"] == "validation/accuracy":
        return "validation share of right answers"
    return "validation error of the target"


def _curve_title(found: Mapping[str, Any]) -> str:
    """An arm is measured in its own holes; a sibling pretext has none."""
    if found.get("curve", PSNR) == "validation/accuracy":
        return f"{_curve_name(found)}, of the arm's own questions"
    shown = f"{_curve_name(found)}, in the arm's own holes"
    others = {c["arm"] for c in found["cells"] if c.get("pretext", INPAINTING) != INPAINTING}
    return f"{shown}; without {', '.join(sorted(others))}, which has none" if others else shown


def table(found: Mapping[str, Any]) -> Table:
    """The metric of the verdict, for a terminal."""
    shown = Table(title=found["metric"], title_justify="left")
    for name in ("rank", "arm", "mean +- std", "seeds"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for row in _arm_rows(found["comparisons"].get(found["metric"], {"arms": ()})):
        shown.add_row(*row)
    return shown


def _arm_rows(compared: Mapping[str, Any]) -> list[list[str]]:
    return [
        [_rank(arm), arm["arm"], with_spread(arm["mean"], arm["std"]), str(arm["seeds"])]
        for arm in compared["arms"]
    ]


def _rank(arm: Mapping[str, Any]) -> str:
    return "-" if arm["rank"] is None else str(arm["rank"])


def _warnings(found: Mapping[str, Any]) -> Iterator[str]:
    """What makes the verdict weak, or lacks in it."""
    if found["seeds"] < FEW_SEEDS:
        yield (
            f"<p class='warning'>{counted(found['seeds'], 'seed')}: with fewer than {FEW_SEEDS} "
            "the intervals are wide, and with one there are none.</p>"
        )
    failed = [f"{c['arm']} seed {c['seed']}" for c in found["cells"] if c["status"] == "failed"]
    if failed:
        yield (
            f"<p class='warning'>Without a result, and left out below: "
            f"{html_page.text(', '.join(failed))}. Why stands in the table of cells.</p>"
        )


def _halving(found: Mapping[str, Any]) -> list[str]:
    return [
        f"<p class='note'>After {rung['steps']} steps the better half went on: "
        f"{html_page.text(', '.join(rung['kept']))}. The verdict is about full runs alone.</p>"
        for rung in found["rungs"]
    ]


def _decisive(found: Mapping[str, Any], compared: Mapping[str, Any]) -> Iterator[str]:
    """The metric of the verdict in full: ranks, an image of it, and every pair."""
    rows = [[arm, rank, *rest] for rank, arm, *rest in _arm_rows(compared)]
    heads = ["arm", "rank", "mean +- std", "seeds"]
    first = {(at, 2) for at, row in enumerate(rows) if row[1] == "1" and len(rows) > 1}
    caption = f"{compared['metric']}, {compared['better']} is better; marked: rank 1"
    yield html_page.table(caption, heads, rows, best=first)
    yield html_page.chart("every seed, and the mean of the arm", points(found, compared))
    if compared["differences"]:
        pairs = [
            [
                f"{pair['first']} - {pair['second']}",
                f"{pair['mean']:.4g}",
                f"{pair['low']:.4g} to {pair['high']:.4g}",
                "yes" if pair["low"] > 0 or pair["high"] < 0 else "no",
            ]
            for pair in compared["differences"]
        ]
        heads = ["paired difference", "mean", "95 % interval", "told apart"]
        yield html_page.table("differences within seeds", heads, pairs)


def _by_setting(found: Mapping[str, Any]) -> Iterator[str]:
    """What each setting is worth: a score per row, a value of the setting per column."""
    tables: dict[str, list[tuple[str, list[Mapping[str, Any]]]]] = {}
    for metric, levels in found.get("settings", {}).items():
        for setting, group in groupby(levels, key=itemgetter("setting")):
            tables.setdefault(setting, []).append((metric, list(group)))
    if not tables:
        return
    yield "<h2>What each setting is worth</h2>"
    yield (
        "<p class='note'>Means over the arms and seeds that differ in this setting alone; in "
        "brackets in how many of these pairs a value is worse than the one with the best mean, "
        "which is marked. Other settings count equally.</p>"
    )
    for setting, rows in tables.items():
        values = list(dict.fromkeys(level["value"] for _, own in rows for level in own))
        cells = []
        best = set()
        for at, (metric, own) in enumerate(rows):
            shown = dict.fromkeys(values, "n/a")
            for level in own:
                behind = f" ({level['behind']} of {level['pairs']})" if level != own[0] else ""
                shown[level["value"]] = f"{level['mean']:.4g}{behind}"
            best.add((at, 1 + values.index(own[0]["value"])))  # the best mean comes first
            cells.append([metric, *shown.values()])
        yield html_page.table(setting, ["score", *values], cells, best=best)


def _all_scores(found: Mapping[str, Any]) -> Iterator[str]:
    """One table per task: a metric per row, an arm per column."""
    by_task: dict[str, list[list[str]]] = {}
    best: dict[str, set[tuple[int, int]]] = {}
    for name, compared in found["comparisons"].items():
        task, _, metric = name.partition("/")
        arms = {arm["arm"]: arm for arm in compared["arms"]}
        cells = [
            f"{with_spread(arms[arm]['mean'], arms[arm]['std'])} ({_rank(arms[arm])})"
            if arm in arms
            else "n/a"
            for arm in found["arms"]
        ]
        rows = by_task.setdefault(task, [])
        if len(arms) > 1:
            top = compared["arms"][0]["mean"]  # the best mean comes first
            best.setdefault(task, set()).update(
                (len(rows), 2 + at)
                for at, arm in enumerate(found["arms"])
                if arm in arms and arms[arm]["mean"] == top
            )
        rows.append([metric, compared["better"], *cells])
    for task, rows in by_task.items():
        heads = ["score", "better", *found["arms"]]
        yield html_page.table(
            f"{task}; marked: the best mean", heads, rows, best=best.get(task, ())
        )


def points(found: Mapping[str, Any], compared: Mapping[str, Any]) -> Figure:
    """Every seed as a dot, the mean as a bar; an arm per line, the best on top."""
    arms = [arm["arm"] for arm in compared["arms"]]
    figure = Figure(figsize=(6.5, 0.8 + 0.35 * len(arms)), dpi=110, layout="tight")
    axes = figure.subplots()
    for line, arm in enumerate(compared["arms"]):
        values = [
            cell["scores"][compared["metric"]]
            for cell in found["cells"]
            if cell["arm"] == arm["arm"]
            and cell["steps"] == found["steps"]
            and compared["metric"] in cell["scores"]
        ]
        colour = f"C{found['arms'].index(arm['arm'])}"
        axes.plot(values, [line] * len(values), "o", color=colour, markersize=5, alpha=0.6)
        axes.plot(arm["mean"], line, "|", color=colour, markersize=18, markeredgewidth=2.5)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(compared["metric"])
    axes.grid(alpha=0.3, axis="x")
    return figure


def _comparable(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Arms whose curves share an axis, by what the title says of them: errors are of one target."""
    if found.get("curve") != TARGET_ERROR:
        return {"": found["arms"]}
    targets = {cell["arm"]: cell.get("target") for cell in found["cells"]}
    groups: dict[str, list[str]] = {}
    for arm in found["arms"]:
        target = targets.get(arm)
        groups.setdefault(f"; target {target}" if target else "", []).append(arm)
    return groups


def curves(found: Mapping[str, Any], arms: Sequence[str]) -> Figure:
    """Mean over seeds as a line, every seed as a thin one; of few measurements each is a point."""
    figure = Figure(figsize=(6.5, 4), dpi=110, layout="tight")
    axes = figure.subplots()
    for arm in arms:
        runs = [
            np.array(cell["curve"])
            for cell in found["cells"]
            if cell["arm"] == arm and cell["steps"] == found["steps"] and cell["curve"]
        ]
        colour = f"C{found['arms'].index(arm)}"
        for run in runs:
            mark = "." if len(run) <= FEW_POINTS else None
            axes.plot(run[:, 0], run[:, 1], color=colour, linewidth=0.6, alpha=0.5, marker=mark)
        if runs and len({len(run) for run in runs}) == 1:
            mean = np.mean(runs, axis=0)
            mark = "o" if len(mean) <= FEW_POINTS else None
            axes.plot(mean[:, 0], mean[:, 1], color=colour, linewidth=2, label=arm, marker=mark)
    axes.set_xlabel("step")
    axes.set_ylabel(_curve_name(found))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return figure


def _cells(cells: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{cell['arm']} seed {cell['seed']}",
            str(cell["steps"]),
            cell["status"],
            f"{cell['seconds']:.0f}",
            f"{cell['cpu_hours']:.3f}",
            f"{cell['gpu_hours']:.3f}",
            str(cell["restarts"]),
            cell["tracking_run_id"] or "-",
            cell["error"] or "",
        ]
        for cell in cells
    ]
    heads = ["cell", "steps", "status", "seconds of the last attempt", "CPU h", "GPU h",
             "restarts", "MLflow run", "error"]  # fmt: skip
    return html_page.table("cells and their cost", heads, rows)
