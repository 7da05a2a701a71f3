"""A report: a page for people and the same as JSON, in the store and in MLflow."""

import json
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient

from pipelines import storage
from pipelines.tracking import runs


@dataclass(frozen=True)
class Report:
    """`<name>.html` and `<name>.json`."""

    name: str
    page: str
    found: dict[str, Any]

    def files(self) -> dict[str, bytes]:
        """The files by name."""
        text = json.dumps(self.found, indent=2, sort_keys=True) + "\n"
        return {f"{self.name}.html": self.page.encode(), f"{self.name}.json": text.encode()}

    def write(self, folder: str) -> str:
        """Write both files to a folder; returns the URI of the page."""
        for name, data in self.files().items():
            storage.publish(storage.join(folder, name), data)
        return storage.join(folder, f"{self.name}.html")

    def log(self, server: MlflowClient, run_id: str, folder: str = "") -> None:
        """Log both files to a run."""
        for name, data in self.files().items():
            runs.log_bytes(server, run_id, f"{folder}/{name}" if folder else name, data)
