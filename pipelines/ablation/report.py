"""ablation.html: verdict, curves, images, every score with its spread, costs; in one file."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from pipelines import html_page
from pipelines.ablation.comparison import with_spread

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
        f"<p class='note'>{len(found['arms'])} arms x {found['seeds']} seeds, {found['steps']} "
        f"steps each, dataset {html_page.text(found['dataset_fingerprint'][:16])}, commit "
        f"{html_page.text(found['code'])}. Equal data, holes, steps and evaluation; a seed fixes "
        "weights and order. Intervals hold for all pairs at once (Tukey, seeds as blocks, pooled "
        "residual spread); arms whose interval includes zero share their rank.</p>",
        *_halving(found),
        *(_decisive(found, decisive) if decisive else ()),
        "<h2>Learning curves</h2>",
        html_page.chart(f"{found.get('curve', PSNR)} in the arm's own holes", curves(found)),
        "<h2>The same images</h2>",
        *(html_page.image(arm, data) for arm, data in panels.items()),
        "<h2>All scores</h2>",
        "<p class='note'>Mean and standard deviation over the seeds; in brackets the rank, 1 for "
        "all that cannot be told from the best.</p>",
        *_all_scores(found),
        "<h2>Cells</h2>",
        _cells(found["cells"]),
    ]
    return html_page.document("Mask ablation", "".join(parts))


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
    yield html_page.table(f"{compared['metric']}, {compared['better']} is better", heads, rows)
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


def _all_scores(found: Mapping[str, Any]) -> Iterator[str]:
    """One table per task: a metric per row, an arm per column."""
    by_task: dict[str, list[list[str]]] = {}
    for name, compared in found["comparisons"].items():
        task, _, metric = name.partition("/")
        arms = {arm["arm"]: arm for arm in compared["arms"]}
        cells = [
            f"{with_spread(arms[arm]['mean'], arms[arm]['std'])} ({_rank(arms[arm])})"
            if arm in arms
            else "n/a"
            for arm in found["arms"]
        ]
        by_task.setdefault(task, []).append([metric, compared["better"], *cells])
    for task, rows in by_task.items():
        yield html_page.table(task, ["score", "better", *found["arms"]], rows)


def points(found: Mapping[str, Any], compared: Mapping[str, Any]) -> Figure:
    """Every seed as a dot, the mean as a bar; an arm per line, the best on top."""
    arms = [arm["arm"] for arm in compared["arms"]]
    figure = Figure(figsize=(8, 0.8 + 0.35 * len(arms)), dpi=100, layout="tight")
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


def curves(found: Mapping[str, Any]) -> Figure:
    """Mean over seeds as a line, every seed as a thin one."""
    figure = Figure(figsize=(8, 4), dpi=100, layout="tight")
    axes = figure.subplots()
    for number, arm in enumerate(found["arms"]):
        runs = [
            np.array(cell["curve"])
            for cell in found["cells"]
            if cell["arm"] == arm and cell["steps"] == found["steps"] and cell["curve"]
        ]
        colour = f"C{number}"
        for run in runs:
            axes.plot(run[:, 0], run[:, 1], color=colour, linewidth=0.6, alpha=0.5)
        if runs and len({len(run) for run in runs}) == 1:
            mean = np.mean(runs, axis=0)
            axes.plot(mean[:, 0], mean[:, 1], color=colour, linewidth=2, label=arm)
    axes.set_xlabel("step")
    axes.set_ylabel("validation PSNR in the hole, dB")
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
