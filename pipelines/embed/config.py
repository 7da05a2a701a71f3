"""Settings of an embedding run."""

from dataclasses import dataclass
from typing import Literal

from ce_model.choices import Pool
from pipelines.errors import UserError
from pipelines.prepare.source_config import SourceConfig


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(SourceConfig):
    """Images -> the features of a model's encoder, as Parquet."""

    model: str
    """Model folder, pretraining stage, checkpoint, MLflow run id or models:/name@alias."""
    output: str | None = None
    """Folder for the features; None: STORE/embed/KEY, where the key follows from all settings."""
    layer: str | None = None
    """Layer of the encoder: conv1 to conv5 and pool5 of alexnet and features, e1 to e6 of inpaint,
    e1 to e5 of unet; None: the last."""
    pool: Pool = "none"
    """Of a layer with a map: all its values, or the mean or the maximum per channel."""
    normalize: bool = False
    """Bring every vector to length 1, so that dot products are cosines."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the stored values; float16 halves the files and keeps about three digits."""
    query: tuple[str, ...] = ()
    """Images whose nearest neighbours are shown, as a table and as OUTPUT/neighbours-*.png."""
    neighbours: int = 8
    """Neighbours of each query."""
    batch_size: int = 64
    """Images that pass through the network at once."""
    actors: int = 0
    """Processes that hold the model; 0: one per GPU, or one per two CPUs."""
    max_pixels: int = 50_000_000
    """An image with more is left out before it is decoded."""
    max_bad_images: int = 10
    """Images that may be left out for a fault, whatever their share."""
    max_bad_share: float = 0.01
    """Share of images that may be left out before the job fails."""
    store: str = "store"
    """Where features and registered models are kept; with SQLite also the tracking."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before any work."""
        super().__post_init__()
        least = {"batch_size": 1, "neighbours": 1, "actors": 0, "max_pixels": 1}
        for name, smallest in {**least, "max_bad_images": 0}.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {smallest} or more")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share is {self.max_bad_share}; it must be 0 to 1")
