"""What the driver shows and measures of a training that runs elsewhere in the cluster."""

import psutil
from rich.console import Console

from pipelines.progress import ProgressDisplay


class TrainingProgress(ProgressDisplay):
    """Step, losses and rate."""

    def __init__(self, console: Console, steps: int) -> None:
        """Show nothing until the first record."""
        super().__init__(console, "step", steps)
        self._steps = steps

    def record(self, step: int, values: dict[str, float]) -> None:
        """Show a record of the curves."""
        losses = "  ".join(
            f"{short} {values[name]:.4f}"
            for short, name in (
                ("rec", "loss/reconstruction"),
                ("joint", "loss/joint"),
                ("D", "loss/discriminator"),
            )
            if name in values
        )
        text = f"{losses}  {values['images_per_second']:.0f} images/s"
        # A resumed run did not make the steps before in this time.
        self.update(step, text, left_s=(self._steps - step) * values["seconds_per_step"])


def memory_of_tree() -> int:
    """Bytes of memory of this process and all below it, shared pages counted once (PSS)."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended while we looked
    return total
