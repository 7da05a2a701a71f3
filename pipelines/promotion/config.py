"""Settings of a promotion."""

from dataclasses import dataclass

from pipelines.tracking.names import require_name


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Move the alias `champion` to a run's model when every gate holds."""

    run: str | None = None
    """MLflow run that trained the model."""
    name: str = "context-encoder"
    """Registered model."""
    gates: str | None = None
    """YAML file of what is demanded; None: the gates.yaml that comes with the package."""
    rollback: bool = False
    """Make the previous champion the champion again."""
    replace_missing_champion: bool = False
    """Replace, without a comparison, a champion whose run was deleted for good (mlflow gc)."""
    explain: str | None = None
    """Print where a registered model came from: models:/NAME@champion or models:/NAME/3."""
    store: str = "store"
    """Where promotions of one model wait for each other: give all of them the same."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""

    def __post_init__(self) -> None:
        """One thing at a time, of a name that there can be."""
        require_name(self.name)
        requested = [self.run is not None, self.rollback, self.explain is not None]
        if sum(requested) != 1:
            raise ValueError(
                f"run is {self.run}, rollback is {self.rollback}, explain is {self.explain}; give "
                "exactly one of the three"
            )
