"""What a person can ask of the job."""

from dataclasses import dataclass
from typing import get_args

from ce_model.masks import MIN_SIZE, Strategy
from pipelines.data import manifest
from pipelines.data.manifest import MaskSpec
from pipelines.errors import UserError
from pipelines.prepare.normalise import Limits
from pipelines.prepare.source_config import SourceConfig


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(SourceConfig):
    """Raw images -> a dataset in the shard contract."""

    store: str = "store"
    """The dataset goes to STORE/prepare/KEY, where the key follows from source and settings."""
    output: str | None = None
    """Folder of the dataset instead of STORE/prepare/KEY; one that exists is added to."""
    dry_run: bool = False
    """List and sample the source, predict shards, bytes and time, and write nothing."""
    strategies: tuple[Strategy, ...] = ("central", "random_block", "random_region")
    """Families of masks to cut, section 3.3 of the paper."""
    sides: tuple[int, ...] = (128, 227)
    """Sides of the masks, px: 128 for the preset `inpaint`, 227 for `alexnet`."""
    variants: int = 2
    """Masks per image; training turns and flips each in 8 ways."""
    stored_side: int = 256
    """Images are shrunk to this shorter side, px; smaller ones stay as they are."""
    jpeg_quality: int = 90
    """Of the stored images."""
    validation_share: float = 0.05
    """Share of every class for val, at least one image of two, where the source has no val."""
    seed: int = 0
    """Of the shuffle, the split and the masks."""
    rows_per_shard: int = 4096
    """Images per Parquet file; fewer where the source is small."""
    row_group_rows: int = 256
    """Images per row group, the unit of reading: about 8 MB."""
    max_pixels: int = 50_000_000
    """An image with more is quarantined before it is decoded."""
    min_side: int = 16
    """An image with a shorter side is quarantined, px."""
    max_bad_images: int = 10
    """Images that may be quarantined whatever their share."""
    max_bad_share: float = 0.001
    """Share of images that may be quarantined before the job fails."""
    max_bad_class_share: float = 0.05
    """The same within one class."""
    tracking_uri: str | None = None
    """MLflow server that gets the card; MLFLOW_TRACKING_URI or a file in STORE when left out."""
    max_broken_archives: int = 0
    """Archives that may end in the middle; what is behind the damage is lost."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any work."""
        super().__post_init__()
        _require(
            "validation_share",
            self.validation_share,
            0 <= self.validation_share < 1,
            "0 or more and less than 1; something must be left to train on",
        )
        for name in ("max_bad_share", "max_bad_class_share"):
            share = getattr(self, name)
            _require(name, share, 0 <= share <= 1, "0 to 1, a share of the images")
        for name in ("variants", "rows_per_shard", "row_group_rows", "stored_side", "min_side"):
            count = getattr(self, name)
            _require(name, count, count >= 1, "1 or more")
        _require("jpeg_quality", self.jpeg_quality, 1 <= self.jpeg_quality <= 100, "1 to 100")
        _require("max_bad_images", self.max_bad_images, self.max_bad_images >= 0, "0 or more")
        _require(
            "sides",
            self.sides,
            len(self.sides) > 0 and all(MIN_SIZE <= side <= 1024 for side in self.sides),
            f"one or more, {MIN_SIZE} to 1024 px each; the presets use 128 and 227",
        )
        known = ", ".join(get_args(Strategy))
        _require("strategies", self.strategies, len(self.strategies) > 0, f"one or more of {known}")
        _require(
            "min_side",
            self.min_side,
            self.min_side <= self.stored_side,
            f"at most --stored-side, {self.stored_side}",
        )

    @property
    def masks(self) -> tuple[MaskSpec, ...]:
        """The mask columns, each once."""
        sides, strategies = dict.fromkeys(self.sides), dict.fromkeys(self.strategies)
        return manifest.default_masks(tuple(sides), tuple(strategies), self.variants)

    @property
    def limits(self) -> Limits:
        """What an image may be."""
        return Limits(self.stored_side, self.jpeg_quality, self.max_pixels, self.min_side)


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} is {value}; it must be {rule}")
