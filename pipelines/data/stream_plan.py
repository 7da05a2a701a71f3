"""The order of training images: windows, permutations and draws, as pure functions of the seed."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ce_model.masks import Strategy
from pipelines.data.colour_jitter import ColourJitter
from pipelines.data.manifest import Manifest
from pipelines.errors import UserError
from pipelines.storage import CacheSettings

CROP_RATIO = (3 / 4, 4 / 3)
WINDOW_ROWS = 4096  # images a task shuffles at once; 120 MB of JPEG at 30 kB each


BLOCK_BYTES = 32 * 2**20  # a block costs Ray about 25 ms of processor time, whatever its size


@dataclass(frozen=True, kw_only=True)
class ResizedCrop:
    """Random crops that are resized to one side, after Szegedy et al. 2015, arXiv:1409.4842."""

    area: tuple[float, float]
    """Least and greatest share of the image's area."""
    ratio: tuple[float, float] = CROP_RATIO
    """Least and greatest width over height, drawn evenly in its logarithm."""

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"crop_area is {self.area}; it must be two rising shares, above 0 to 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise UserError(f"crop_ratio is {self.ratio}; it must be two rising numbers above 0")

    def size(self, height: int, width: int, draw: tuple[float, float]) -> tuple[int, int]:
        """Height and width of a crop, px; what is longer than the image is cut to its side.

        Args:
            height, width: of the image, px.
            draw: where in the ranges of area and of ratio, 0 to 1.
        """
        area = height * width * (self.area[0] + draw[0] * (self.area[1] - self.area[0]))
        low, high = map(math.log, self.ratio)
        ratio = math.exp(low + draw[1] * (high - low))
        down, across = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        return max(1, min(height, down)), max(1, min(width, across))


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What is read, in which order and how it is cut."""

    uri: str
    manifest: Manifest
    strategy: Strategy
    side: int
    """Side of the square images and masks, px."""
    shorter: int
    """Shorter side to which an image is resized before the crop, px; 0 keeps the stored size."""
    batch_size: int
    """Images per global batch."""
    num_workers: int
    steps: int
    seed: int
    window_rows: int = WINDOW_ROWS
    augment: bool = True
    """Random crop, flip and symmetry of the hole; False gives the centre crop."""
    crop: ResizedCrop | None = None
    """Random crops that are resized; None: crops of `side` px after resizing to `shorter`."""
    flip: bool = True
    """Mirror half of the images."""
    colour: ColourJitter | None = None
    """Random changes of the colours."""
    cache: CacheSettings | None = None
    """Where shards are kept on the nodes' disks; changes no batch."""
    most_rows: int | None = None
    """Training images that are used, the first of the split; None: all."""

    def __post_init__(self) -> None:
        """Whole batches for every worker."""
        if self.batch_size % self.num_workers:
            raise UserError(
                f"batch_size is {self.batch_size}; it must be a multiple of num_workers "
                f"{self.num_workers}, so that every worker gets equal steps"
            )
        if self.rows < self.batch_size:
            raise UserError(
                f"batch_size is {self.batch_size}; the dataset has only {self.rows} training "
                "images, which do not fill one batch: lower --batch-size or add images"
            )

    @property
    def rows(self) -> int:
        """Training images that are used."""
        there = self.manifest.rows("train")
        return there if self.most_rows is None else min(there, self.most_rows)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch."""
        return self.rows // self.batch_size

    @property
    def window_batches(self) -> int:
        """Global batches per shuffle window."""
        return max(1, min(self.window_rows // self.batch_size, self.steps_per_epoch))

    @property
    def worker_batch(self) -> int:
        """Images per step and worker."""
        return self.batch_size // self.num_workers

    @property
    def block_batches(self) -> int:
        """Per-worker batches in a block: about BLOCK_BYTES, and a window in equal parts."""
        most = max(1, BLOCK_BYTES // (self.worker_batch * self.row_bytes))
        return -(-self.window_batches // -(-self.window_batches // most))

    @property
    def block_rows(self) -> int:
        """Images in a block, padding included."""
        return self.block_batches * self.worker_batch

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a block."""
        mask = self.manifest.mask_spec(self.strategy, self.side).bytes_per_mask
        return self.side**2 * 3 + mask + 1 + 4 + 8 + 4

    @property
    def windows_per_epoch(self) -> int:
        """Shuffle windows per epoch; the last may be shorter, by whole batches."""
        return -(-self.steps_per_epoch // self.window_batches)


@dataclass(frozen=True)
class Window:
    """One work item: consecutive global batches of one epoch."""

    epoch: int
    first_step: int
    """Number of its first global batch in the run."""
    batches: int
    first_batch: int
    """Number of its first global batch in the epoch."""


def num_windows(plan: StreamPlan) -> int:
    """Work items of a run; the last one has the batch before `plan.steps`."""
    return window_of(plan, plan.steps - 1) + 1


def window_of(plan: StreamPlan, step: int) -> int:
    """Number of the work item that has a global batch."""
    epoch, batch = divmod(step, plan.steps_per_epoch)
    return epoch * plan.windows_per_epoch + batch // plan.window_batches


def window(plan: StreamPlan, number: int) -> Window:
    """A work item."""
    epoch, of_epoch = divmod(number, plan.windows_per_epoch)
    first = of_epoch * plan.window_batches
    batches = min(plan.window_batches, plan.steps_per_epoch - first)
    return Window(epoch, epoch * plan.steps_per_epoch + first, batches, first)


def windows(plan: StreamPlan) -> Iterator[Window]:
    """All work items of a run, in order."""
    return (window(plan, number) for number in range(num_windows(plan)))


@dataclass(frozen=True)
class Draw:
    """All chance of one image in one epoch, from one hash of (seed, epoch, key)."""

    down: float
    across: float
    variant: int
    augment: int
    resized: tuple[float, float] = (1.0, 0.5)
    """Where in the ranges of a `ResizedCrop` its area and its ratio lie, 0 to 1."""

    @classmethod
    def of(cls, plan: StreamPlan, epoch: int, key: str) -> "Draw":
        """The draw of an image in an epoch."""
        if not plan.augment:
            return cls(0.5, 0.5, 0, 0)
        bits = hashlib.blake2b(f"{plan.seed}/{epoch}/{key}".encode(), digest_size=8).digest()
        down = int.from_bytes(bits[0:2], "little") / 65535
        across = int.from_bytes(bits[2:4], "little") / 65535
        variant = int.from_bytes(bits[4:6], "little")
        augment = bits[6] % 16 if plan.flip else bits[6] % 8
        if plan.crop is None:
            return cls(down, across, variant, augment)
        more = hashlib.blake2b(f"{plan.seed}/{epoch}/{key}/crop".encode(), digest_size=4).digest()
        area, ratio = (int.from_bytes(more[at : at + 2], "little") / 65535 for at in (0, 2))
        return cls(down, across, variant, augment, (area, ratio))


def permutation(size: int, seed: int, *names: object) -> NDArray[np.int64]:
    """A permutation that follows from its arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{names}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    return rng.permutation(size)
