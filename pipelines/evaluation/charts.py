"""Charts of a report: lines over the layers of an encoder, dots for everything else."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

LINE_IN, GROUP_IN = 0.24, 0.75  # height of a row and of what stands around a group, inches
NAME_LETTERS, TITLE_LETTERS = 28, 44  # of a line, so that the field keeps its room


class Dot(NamedTuple):
    """One score of one row."""

    name: str
    value: float
    spread: float
    """Standard deviation over seeds and repetitions; 0 where there is one value."""


class Group(NamedTuple):
    """Scores that are compared with each other."""

    title: str
    score: str
    """What is measured, with its unit."""
    dots: list[Dot]


def lines(rows: Sequence[dict[str, Any]]) -> Figure:
    """Lines over the layers, one per model, with the spread over seeds; a single layer is a dot.

    Args:
        rows: `model`, `layer` and `accuracy` (mean and std, 0 to 1) of each.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure = Figure(figsize=(6.5, 4), dpi=110, layout="tight")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(str(row["model"]) for row in rows)):
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
    axes.legend(fontsize=9, ncols=2)
    return figure


def dots(groups: Sequence[Group]) -> Figure:
    """A line per row, the best on top, with its value; one field per group."""
    heights = [GROUP_IN + LINE_IN * len(group.dots) for group in groups]
    figure = Figure(figsize=(6.4, sum(heights)), dpi=120, layout="constrained")
    fields = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, group in zip(fields, groups, strict=True):
        ordered = sorted(group.dots, key=lambda dot: -dot.value)
        places = range(len(ordered))
        values = [dot.value for dot in ordered]
        axes.errorbar(values, places, xerr=[dot.spread for dot in ordered], fmt="o", capsize=3)
        for place, dot in zip(places, ordered, strict=True):
            axes.annotate(
                f"{dot.value:.2f}", (dot.value, place), (7, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        names = [textwrap.fill(dot.name, NAME_LETTERS) for dot in ordered]
        axes.set_yticks(places, names, fontsize=9, linespacing=0.9)
        axes.set_ylim(len(ordered) - 0.5, -0.5)
        axes.margins(x=0.25)  # room for the values
        axes.set_title(textwrap.fill(group.title, TITLE_LETTERS), fontsize=10, loc="left")
        axes.set_xlabel(group.score, fontsize=9)
        axes.tick_params(axis="x", labelsize=9)
        axes.grid(axis="x", alpha=0.3)
    return figure
