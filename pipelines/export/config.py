"""What a person can ask of an export."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the encoder of a model for use elsewhere."""

    model: str
    """Model folder, pretraining stage, MLflow run id or models:/name@alias."""
    output: str
    """Folder to write to."""
    store: str = "store"
    """Where registered models are kept; with SQLite also the tracking."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""
