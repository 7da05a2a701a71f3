"""Signs in a run's curves that adversarial training has collapsed."""

from collections.abc import Iterable, Mapping
from typing import Any

ACCURACY = 0.99
"""Above this the discriminator recognises all fillings, and its gradient teaches nothing."""
WINDOW_STEPS = 200
"""The accuracy has to stay there for this number of steps in a row: short spells are usual."""
VARIANCE_RATIO = 0.01
"""Below this all images get the same filling."""


def collapse(history: Iterable[Mapping[str, Any]]) -> str | None:
    """What is wrong with a finished run, as one sentence; None when nothing is.

    Args:
        history: records `{step, values}` of the curves, by step.
    """
    reasons = []
    spell, longest, last = 0, 0, 0
    variance: float | None = None
    for record in history:
        values = record["values"]
        if "discriminator/accuracy" in values:
            saturated = values["discriminator/accuracy"] > ACCURACY
            spell = spell + record["step"] - last if saturated else 0
            longest, last = max(longest, spell), record["step"]
        variance = values.get("validation/variance_ratio", variance)
    if longest >= WINDOW_STEPS:
        reasons.append(f"discriminator accuracy above {ACCURACY} for {longest} steps in a row")
    if variance is not None and variance < VARIANCE_RATIO:
        reasons.append(f"variance of the fillings is {variance:.2%} of that of the images")
    return "; ".join(reasons) or None
