"""ablation.html: verdict, every score with its spread, curves, pictures, costs; in one file."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.figure
import numpy as np
from rich.table import Table

from pipelines import html_page


def page(found: Mapping[str, Any], panels: Mapping[str, bytes]) -> str:
    """The whole page, which needs no other file.

    Args:
        found: what `ablation.json` holds.
        panels: PNG by arm, of the same validation pictures.
    """
    shown = [found["metric"], *(n for n in found["comparisons"] if n != found["metric"])]
    parts = [
        f"<p class='verdict'>{html_page.text(found['verdict'])}</p>",
        f"<p class='note'>{len(found['arms'])} arms x {found['seeds']} seeds, {found['steps']} "
        f"steps each, dataset {html_page.text(found['dataset_fingerprint'][:16])}, commit "
        f"{html_page.text(found['code'])}. Equal data, holes, steps and evaluation; a seed fixes "
        "weights and order. Intervals hold for all pairs at once (Tukey, seeds as blocks, pooled "
        "residual spread); arms whose interval includes zero share their rank.</p>",
        *_halving(found),
        *(
            _comparison(found["comparisons"][name], detailed=name == found["metric"])
            for name in shown
            if name in found["comparisons"]
        ),
        "<h2>Learning curves</h2>",
        html_page.image("validation PSNR in the arm's own holes", curves(found)),
        "<h2>The same pictures</h2>",
        *(html_page.image(arm, data) for arm, data in panels.items()),
        _cells(found["cells"]),
    ]
    return html_page.document("Mask ablation", "".join(parts))


def table(found: Mapping[str, Any]) -> Table:
    """The metric of the verdict, for a terminal."""
    shown = Table(title=found["metric"], title_justify="left")
    for name in ("rank", "arm", "mean", "std", "seeds"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for row in _arm_rows(found["comparisons"].get(found["metric"], {"arms": ()})):
        shown.add_row(*row)
    return shown


def _arm_rows(compared: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            "-" if arm["rank"] is None else str(arm["rank"]),
            arm["arm"],
            f"{arm['mean']:.5g}",
            "-" if arm["std"] is None else f"{arm['std']:.2g}",
            str(arm["seeds"]),
        ]
        for arm in compared["arms"]
    ]


def _halving(found: Mapping[str, Any]) -> list[str]:
    return [
        f"<p class='note'>After {rung['steps']} steps the better half went on: "
        f"{html_page.text(', '.join(rung['kept']))}. The verdict is about full runs alone.</p>"
        for rung in found["rungs"]
    ]


def _comparison(compared: Mapping[str, Any], *, detailed: bool) -> str:
    heads = ["arm", "rank", "mean", "std", "seeds"]
    rows = [[row[1], row[0], *row[2:]] for row in _arm_rows(compared)]
    text = html_page.table(f"{compared['metric']}, {compared['better']} is better", heads, rows)
    if not detailed:
        return text
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
    return text + html_page.table("differences within seeds", heads, pairs)


def curves(found: Mapping[str, Any]) -> bytes:
    """Mean over seeds as a line, every seed as a thin one."""
    figure = matplotlib.figure.Figure(figsize=(8, 4), dpi=100)
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
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


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
