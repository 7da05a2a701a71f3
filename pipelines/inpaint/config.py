"""What a person can ask of a filling run."""

from dataclasses import dataclass

from ce_model.masks import Strategy
from pipelines.data.hole_masks import Polarity


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """Fill the holes of images; pixels outside the holes are returned unchanged."""

    model: str
    """Model folder, pretraining stage, run id, or registered model: models:/NAME@champion."""
    images: str
    """An image, or a folder of JPEG, PNG, WebP or AVIF images, searched in full."""
    output: str
    """Folder for the filled images and index.html, which shows them."""
    masks: str | None = None
    """A mask, or a folder of masks named as the images; one of another size is resized."""
    mask_polarity: Polarity = "auto"
    """What a mask fills: white (all that is not black), black (all that is not white), opaque or
    transparent (by alpha); auto: alpha where the mask has some, else white."""
    strategy: Strategy | None = None
    """Instead of masks: draw holes of this family."""
    seed: int = 0
    """Of drawn holes."""
    batch_size: int = 16
    """Images filled at once."""
    actors: int = 0
    """Processes of a Ray cluster that hold the model; 0: one per GPU, or one per two CPUs, and no
    Ray at all for a few images."""
    max_bad_share: float = 0.01
    """Share of images that may be left out for a fault before the job fails."""
    store: str = "store"
    """Where registered models are kept; with SQLite also the tracking."""
    tracking_uri: str | None = None
    """MLflow server of a registered model; None: MLFLOW_TRACKING_URI, else SQLite in the store."""

    def __post_init__(self) -> None:
        """One source of holes."""
        if (self.masks is None) == (self.strategy is None):
            raise ValueError(
                f"masks is {self.masks} and strategy is {self.strategy}; give exactly one of them"
            )
        if self.masks is None and self.mask_polarity != "auto":
            raise ValueError(
                f"mask_polarity is {self.mask_polarity}; it must stay auto with strategy "
                f"{self.strategy}, which draws its own holes"
            )
        for name, least in (("batch_size", 1), ("actors", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}; it must be 0 to 1")
