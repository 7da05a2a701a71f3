"""The panel that a person looks at: input, hole, output and target, or what a pretext asks."""

import io
from typing import Any

import matplotlib.figure
import numpy as np


def draw(images: dict[str, Any], title: str) -> bytes:
    """PNG of one row per image.

    Args:
        images: by column name, uint8 (N, S, S, 3) or bool (N, S, S), or N texts.
        title: what was filled by what.
    """
    count = len(next(iter(images.values())))
    size = (2 * len(images), 2 * count + 0.7)
    figure = matplotlib.figure.Figure(figsize=size, dpi=80, layout="constrained")
    axes = figure.subplots(count, len(images), squeeze=False)
    for row in range(count):
        for column, values in enumerate(images.values()):
            if isinstance(values[row], str):
                axes[row, column].text(0.0, 0.5, values[row], fontsize=9, va="center")
            else:
                shown = np.asarray(values[row])
                axes[row, column].imshow(shown, cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
    for column, name in enumerate(images):
        axes[0, column].set_title(name, fontsize=11)
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
