"""What a person can ask of a filling run."""

from dataclasses import dataclass

from ce_model.masks import Strategy


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """Fill the holes of a folder of images."""

    model: str
    """Model folder, pretraining stage, or registered model: models:/NAME@champion."""
    images: str
    """Folder of JPEG or PNG images, searched in full."""
    output: str
    """Folder for the filled images."""
    masks: str | None = None
    """Folder of masks, named as the images and of their size; what is not black is filled,
    in a JPEG, where black is not exact, what is lighter than half."""
    strategy: Strategy | None = None
    """Instead of masks: draw holes of this family."""
    seed: int = 0
    """Of drawn holes."""
    batch_size: int = 16
    """Images filled at once."""
    actors: int = 0
    """Processes that hold the model; 0: one per GPU, or one per two CPUs."""
    max_bad_share: float = 0.01
    """Share of images that may be left out for a fault before the job fails."""
    store: str = "store"
    """Where SQLite tracking lies when no server is named."""
    tracking_uri: str | None = None
    """MLflow server of a registered model; None: MLFLOW_TRACKING_URI, else SQLite in the store."""

    def __post_init__(self) -> None:
        """One source of holes."""
        if (self.masks is None) == (self.strategy is None):
            raise ValueError(
                f"masks is {self.masks} and strategy is {self.strategy}; give exactly one of them"
            )
        for name, least in (("batch_size", 1), ("actors", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}; it must be 0 to 1")
