"""What may be removed from a store."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """List, and remove, what nothing in a store needs any more."""

    store: str = "store"
    """Folder or s3:// URI of the jobs' store."""
    dry_run: bool = False
    """Only list it."""
    older_than_days: float = 30.0
    """Unfinished work and unused datasets stay until nothing in them has changed for so long."""
    tracking_uri: str | None = None
    """MLflow server whose runs and models are kept; None: MLFLOW_TRACKING_URI, else the store's."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.older_than_days < 0:
            raise ValueError(f"older_than_days is {self.older_than_days}; it must be 0 or more")
