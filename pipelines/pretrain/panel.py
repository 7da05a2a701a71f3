"""The panel that a person looks at: input, hole, output and target side by side."""

import io
from typing import Any

import matplotlib.figure
import numpy as np

COLUMNS = ("input", "hole", "output", "target")


def draw(images: dict[str, Any], title: str) -> bytes:
    """PNG of one row per image.

    Args:
        images: by column name, uint8 (N, S, S, 3) or bool (N, S, S).
        title: what was filled by what.
    """
    count = len(images["target"])
    size = (2 * len(COLUMNS), 2 * count + 0.7)
    figure = matplotlib.figure.Figure(figsize=size, dpi=80, layout="constrained")
    axes = figure.subplots(count, len(COLUMNS), squeeze=False)
    for row in range(count):
        for column, name in enumerate(COLUMNS):
            shown = np.asarray(images[name][row])
            axes[row, column].imshow(shown, cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
    for column, name in enumerate(COLUMNS):
        axes[0, column].set_title(name, fontsize=11)
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
