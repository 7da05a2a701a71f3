"""Gauges of a training for Prometheus: Ray's agents serve them beside Ray's own, as `ray_` + name.

Panels and alarms of infra/monitoring use these names; a test holds them together.
"""

from ray.util.metrics import Gauge

PREFIX = "context_encoder_"
GAUGES = {
    "images_per_second": "Images that all workers together train on, per second",
    "step": "Step of the last point of the curves",
    "data_wait_share": "Share of the time in which the device waits for batches",
    "loss": "Losses, by their name",
    "updates_skipped": "Updates that were not finite and were applied nowhere",
    "restarts": "Times that this job resumed at a checkpoint",
    "memory_bytes": "Largest resident memory of the training processes of all nodes together",
    "validation_psnr": "PSNR in the hole of the validation images, dB",
}
# Name of a point of the curves -> gauge.
POINTS = {
    "images_per_second": "images_per_second",
    "data_wait_share": "data_wait_share",
    "updates_skipped": "updates_skipped",
    "memory/ranks_peak_bytes": "memory_bytes",
    "validation/psnr_hole": "validation_psnr",
}
LOSS = "loss/"


class TrainingGauges:
    """The last value of each, with the key of the training as label `run`."""

    def __init__(self, run: str) -> None:
        """Make them; they appear once they are set."""
        self._run = {"run": run}
        self._gauges = {
            name: Gauge(PREFIX + name, text, ("run", "loss") if name == "loss" else ("run",))
            for name, text in GAUGES.items()
        }
        self._restarts = 0

    def record(self, step: int, values: dict[str, float]) -> None:
        """Set what a point of the curves says."""
        self._gauges["step"].set(step, self._run)
        for name, value in values.items():
            if name in POINTS:
                self._gauges[POINTS[name]].set(value, self._run)
            elif name.startswith(LOSS):
                labels = {**self._run, "loss": name.removeprefix(LOSS)}
                self._gauges["loss"].set(value, labels)

    def resumed(self) -> None:
        """Count a start that resumed at a checkpoint."""
        self._restarts += 1
        self._gauges["restarts"].set(self._restarts, self._run)
