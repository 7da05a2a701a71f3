"""Shards -> the training stream: one Ray Data execution for the whole run.

The stream is a pure function of (dataset, seed, batch size): global batch `step` holds the same
rows with the same crops and holes for any number of workers, and starting at step s gives the
same batches from s on. So a checkpoint's data position is one integer, the step.

Order: in every epoch the row groups are permuted, laid end to end and cut into windows of whole
global batches; the rows of a window are permuted; a window is read and decoded by one task, which
yields blocks of whole per-worker batches: some steps of worker 0, the same steps of worker 1, and
so on. The rows that do not fill a last batch (fewer than one batch) are left out of that epoch;
the next epoch leaves out others.

Everything stays uint8; normalising, filling the hole and flipping happen on the device.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from ce_model.masks import Strategy
from pipelines import cluster, dataset, images, work_items
from pipelines.dataset import Manifest, RowGroup
from pipelines.errors import UserError
from pipelines.execution_callbacks import Paced, Prompt

WINDOW_ROWS = 4096  # pictures a task shuffles at once; 120 MB of JPEG at 30 kB each
BLOCK_BYTES = 32 * 2**20  # a block costs Ray about 25 ms of processor time, whatever its size
MAX_THREADS = 8  # of a task; what Python itself does for a picture, it does for one at a time
FLIP = 8  # bit of `augment` above the 3 bits of the mask's symmetry
PADDING = -1  # step of the rows that only fill up a block

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What is read, in which order and how it is cut."""

    uri: str
    manifest: Manifest
    strategy: Strategy
    side: int
    """Side of the square pictures and masks, px."""
    shorter: int
    """Shorter side to which a picture is resized before the crop, px; 0 keeps the stored size."""
    batch_size: int
    """Pictures per global batch."""
    num_workers: int
    steps: int
    seed: int
    window_rows: int = WINDOW_ROWS
    augment: bool = True
    """Random crop, flip and symmetry of the hole; False gives the centre crop."""

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
                "pictures, which do not fill one batch: lower --batch-size or add pictures"
            )

    @property
    def rows(self) -> int:
        """Training pictures."""
        return self.manifest.rows("train")

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
        """Pictures per step and worker."""
        return self.batch_size // self.num_workers

    @property
    def block_batches(self) -> int:
        """Per-worker batches in a block: about BLOCK_BYTES, and a window in equal parts."""
        most = max(1, BLOCK_BYTES // (self.worker_batch * self.row_bytes))
        return -(-self.window_batches // -(-self.window_batches // most))

    @property
    def block_rows(self) -> int:
        """Pictures in a block, padding included."""
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


def stream(plan: StreamPlan, start_step: int = 0) -> ray.data.Dataset:
    """The lazy stream from `start_step` on; split it with `streaming_split(W, equal=True)`.

    What a consumer receives is cut into its batches by `batches`.
    The order holds only where the execution has `preserve_order` set: see `execution_options`.
    """
    numbers = work_items.numbers(window_of(plan, start_step), num_windows(plan))
    read = partial(_read_items, plan=plan, start_step=start_step)
    blocks = numbers.map_batches(read, batch_size=None, batch_format="numpy")
    quiet(blocks, plan.block_rows * plan.row_bytes)
    return blocks


def batches(shard: ray.data.DataIterator | ray.data.Dataset, plan: StreamPlan) -> Iterator[Batch]:
    """The batches of one consumer, in order; read-only views of blocks in the object store.

    Columns: image uint8 (B, side, side, 3), mask uint8 (B, packed bits), augment uint8 (symmetry
    of the mask, FLIP), label int32 (-1: none), row int64 (number of the row in the split), step
    int32; B is `plan.worker_batch`.
    """
    blocks = shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
    return _cut(blocks, plan.worker_batch)


def _cut(blocks: Iterable[Batch], size: int) -> Iterator[Batch]:
    for block in blocks:
        for start in range(0, len(block["step"]), size):
            if block["step"][start] != PADDING:
                yield {name: column[start : start + size] for name, column in block.items()}


def execution_options() -> ray.data.ExecutionOptions:
    """The options that make the order hold; Ray Train wants them in its DataConfig."""
    return ray.data.ExecutionOptions(preserve_order=True)


def quiet(data: ray.data.Dataset, block_bytes: int) -> None:
    """One yielded block stays one block, and Ray Data draws no bars of its own."""
    context = data.context
    # Blocks above 1.5 x the target are cut, smaller ones are merged: one of ours is 1.25 x.
    context.target_max_block_size = int(0.8 * block_bytes)
    context.execution_options = execution_options()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else a consumer cannot tell whose fault it was
    context.custom_execution_callback_classes = [Prompt, Paced]


def _read_items(
    block: dict[str, NDArray[np.int64]], *, plan: StreamPlan, start_step: int
) -> Iterator[Batch]:
    for number in block[work_items.COLUMN].tolist():
        yield from _read_blocks(plan, window(plan, number), start_step)


def read_window(plan: StreamPlan, window: Window) -> Iterator[Batch]:
    """The window's per-worker batches, without Ray: those of worker 0 come first in each block."""
    return _cut(_read_blocks(plan, window), plan.worker_batch)


def _read_blocks(plan: StreamPlan, window: Window, start_step: int = 0) -> Iterator[Batch]:
    """All blocks of a run have one size: Ray would cut or merge others. The last may be padded."""
    rows = window_rows(plan, window)
    order = _permutation(rows.num_rows, plan.seed, "rows", window.epoch, window.first_batch)
    order = order.reshape(window.batches, plan.num_workers, plan.worker_batch)
    first = max(0, start_step - window.first_step)
    last = min(window.batches, plan.steps - window.first_step)
    threads = _threads()
    with ThreadPoolExecutor(threads) as pool:
        decode = _Decoder(plan, window.epoch, rows, pool, threads)
        for start in range(first, last, plan.block_batches):
            stop = min(start + plan.block_batches, last)
            steps = np.arange(window.first_step + start, window.first_step + stop, dtype=np.int32)
            for worker in range(plan.num_workers):
                yield decode.block(order[start:stop, worker].ravel(), steps)


def _threads() -> int:
    """Threads that decode a window.

    Windows are delivered in order, so while one is read, the tasks of those behind it can go only
    as far ahead as the object store has room for their blocks: on a machine with many cores far
    fewer windows than cores.
    """
    return min(MAX_THREADS, max(1, cluster.node_cpus() // 4))


class _Decoder:
    """The rows of a window -> blocks."""

    def __init__(
        self, plan: StreamPlan, epoch: int, rows: pa.Table, pool: ThreadPoolExecutor, threads: int
    ) -> None:
        self._plan, self._epoch, self._pool, self._threads = plan, epoch, pool, threads
        self._spec = plan.manifest.mask_spec(plan.strategy, plan.side)
        self._keys, self._labels = rows.column("key").to_pylist(), _labels(rows)
        self._numbers = rows.column("row").to_numpy()
        self._jpegs = dataset.cells(rows.column("image"))
        self._masks = dataset.cells(rows.column(self._spec.column))

    def block(self, chosen: NDArray[np.int64], steps: NDArray[np.int32]) -> Batch:
        """The chosen rows, decoded; what is left of the block is padding."""
        plan, spec = self._plan, self._spec
        size = plan.block_rows
        block: Batch = {
            "image": np.zeros((size, plan.side, plan.side, 3), np.uint8),
            "mask": np.zeros((size, spec.bytes_per_mask), np.uint8),
            "augment": np.zeros(size, np.uint8),
            "label": np.full(size, -1, np.int32),
            "row": np.full(size, -1, np.int64),
            "step": np.full(size, PADDING, np.int32),
        }
        fill = partial(self._fill, block, chosen)
        if self._threads == 1:
            fill(np.arange(len(chosen)))
        else:
            list(self._pool.map(fill, np.array_split(np.arange(len(chosen)), self._threads)))
        block["label"][: len(chosen)] = self._labels[chosen]
        block["row"][: len(chosen)] = self._numbers[chosen]
        block["step"][: len(chosen)] = np.repeat(steps, plan.worker_batch)
        return block

    def _fill(self, block: Batch, chosen: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Pictures and masks of some slots."""
        plan, spec = self._plan, self._spec
        for slot in slots.tolist():
            at = chosen[slot]
            draw = _Draw.of(plan, self._epoch, self._keys[at])
            block["image"][slot] = images.square(
                _decode(plan, self._jpegs[at]), plan.side, plan.shorter, draw.down, draw.across
            )
            begin = draw.variant % spec.variants * spec.bytes_per_mask
            block["mask"][slot] = np.frombuffer(
                self._masks[at], np.uint8, spec.bytes_per_mask, begin
            )
            block["augment"][slot] = draw.augment


def window_rows(plan: StreamPlan, window: Window) -> pa.Table:
    """The rows of a window in reading order, with their number in the split as `row`."""
    spec = plan.manifest.mask_spec(plan.strategy, plan.side)
    groups = dataset.row_groups(plan.manifest, "train")
    begin = window.first_batch * plan.batch_size
    end = begin + window.batches * plan.batch_size
    parts = []
    position = 0
    for at in _permutation(len(groups), plan.seed, "groups", window.epoch):
        group = groups[at]
        cut = slice(max(begin - position, 0), min(end - position, group.rows))
        if cut.start < cut.stop:
            parts.append(_rows(plan.uri, group, cut, spec.column))
        position += group.rows
    return pa.concat_tables(parts)


def _rows(uri: str, group: RowGroup, cut: slice, mask: str) -> pa.Table:
    table = dataset.read_row_group(uri, group, ["key", "label", "image", mask])
    numbers = np.arange(group.first_row, group.first_row + group.rows)
    return table.append_column("row", pa.array(numbers)).slice(cut.start, cut.stop - cut.start)


def fixed_pictures(
    plan: StreamPlan, split: str, count: int, part: tuple[int, int] = (0, 1)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first pictures of a split, centre crop, variant 0: the same whenever it is called.

    Args:
        plan: what a picture and a hole are.
        split: `train` or `val`.
        count: how many at most.
        part: (k, n) takes every n-th picture from the k-th on, for n processes to share.

    Returns:
        image uint8 (N, side, side, 3) and mask uint8 (N, packed bytes).
    """
    spec = plan.manifest.mask_spec(plan.strategy, plan.side)
    pictures, holes = [], []
    for group in dataset.row_groups(plan.manifest, split):
        if group.first_row >= count:
            break
        table = dataset.read_row_group(plan.uri, group, ["image", spec.column])
        for at in range(min(group.rows, count - group.first_row)):
            if (group.first_row + at) % part[1] == part[0]:
                jpeg = dataset.cells(table.column("image").slice(at, 1))[0]
                mask = dataset.cells(table.column(spec.column).slice(at, 1))[0]
                decoded = _decode(plan, jpeg)
                pictures.append(images.square(decoded, plan.side, plan.shorter, 0.5, 0.5))
                holes.append(np.frombuffer(mask, np.uint8, spec.bytes_per_mask))
    if not pictures:
        return (
            np.empty((0, plan.side, plan.side, 3), np.uint8),
            np.empty((0, spec.bytes_per_mask), np.uint8),
        )
    return np.stack(pictures), np.stack(holes)


def _decode(plan: StreamPlan, jpeg: memoryview) -> images.Picture:
    try:
        return images.decode(jpeg)
    except ValueError as error:
        raise dataset.damaged(plan.uri, f"a picture: {error}") from None


def _labels(rows: pa.Table) -> NDArray[np.int32]:
    labels: NDArray[np.int32] = rows.column("label").fill_null(-1).to_numpy().astype(np.int32)
    return labels


@dataclass(frozen=True)
class _Draw:
    """All chance of one picture in one epoch, from one hash of (seed, epoch, key)."""

    down: float
    across: float
    variant: int
    augment: int

    @classmethod
    def of(cls, plan: StreamPlan, epoch: int, key: str) -> "_Draw":
        if not plan.augment:
            return cls(0.5, 0.5, 0, 0)
        bits = hashlib.blake2b(f"{plan.seed}/{epoch}/{key}".encode(), digest_size=8).digest()
        down = int.from_bytes(bits[0:2], "little") / 65535
        across = int.from_bytes(bits[2:4], "little") / 65535
        return cls(down, across, int.from_bytes(bits[4:6], "little"), bits[6] % 16)


def _permutation(size: int, seed: int, *names: object) -> NDArray[np.int64]:
    """A permutation that follows from its arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{names}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    return rng.permutation(size)
