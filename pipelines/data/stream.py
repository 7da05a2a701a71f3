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

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipelines import storage
from pipelines.data import colour_jitter, images, shards
from pipelines.data.shards import RowGroup
from pipelines.data.stream_plan import (
    Draw,
    StreamPlan,
    Window,
    num_windows,
    permutation,
    window,
    window_of,
)
from pipelines.runtime import cluster, ray_internals
from pipelines.runtime.ray_internals import RefreshLimits, RestBetweenTurns
from pipelines.storage import file_cache

MAX_THREADS = 8  # of a task; what Python itself does for an image, it does for one at a time
FLIP = 8  # bit of `augment` above the 3 bits of the mask's symmetry
PADDING = -1  # step of the rows that only fill up a block

Batch = dict[str, NDArray[Any]]
TellReads = Callable[[storage.Use, tuple[str, ...]], None]
"""Gets what was read through a cache, and warnings, after each window."""


def stream(
    plan: StreamPlan, start_step: int = 0, tell_reads: TellReads | None = None
) -> ray.data.Dataset:
    """The lazy stream from `start_step` on; split it with `streaming_split(W, equal=True)`.

    What a consumer receives is cut into its batches by `batches`.
    The order holds only where the execution has `preserve_order` set: see `execution_options`.
    """
    numbers = ray_internals.number_dataset(window_of(plan, start_step), num_windows(plan))
    read = partial(_read_items, plan=plan, start_step=start_step, tell_reads=tell_reads)
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
    context.custom_execution_callback_classes = [RefreshLimits, RestBetweenTurns]


def _read_items(
    block: dict[str, NDArray[np.int64]],
    *,
    plan: StreamPlan,
    start_step: int,
    tell_reads: TellReads | None,
) -> Iterator[Batch]:
    for number in block[ray_internals.COLUMN].tolist():
        blocks = _read_blocks(plan, window(plan, number), start_step)
        first = next(blocks, None)  # by then the window is read
        if plan.cache is not None and tell_reads is not None:
            tell_reads(*file_cache.opened(plan.cache).take())
        if first is not None:
            yield first
            yield from blocks


def read_window(plan: StreamPlan, window: Window) -> Iterator[Batch]:
    """The window's per-worker batches, without Ray: those of worker 0 come first in each block."""
    return _cut(_read_blocks(plan, window), plan.worker_batch)


def _read_blocks(plan: StreamPlan, window: Window, start_step: int = 0) -> Iterator[Batch]:
    """All blocks of a run have one size: Ray would cut or merge others. The last may be padded."""
    rows = window_rows(plan, window)
    order = _order(plan, window)
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
        self._jpegs = shards.cells(rows.column("image"))
        self._masks = shards.cells(rows.column(self._spec.column))

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
        """Images and masks of some slots."""
        plan, spec = self._plan, self._spec
        for slot in slots.tolist():
            at = chosen[slot]
            draw = Draw.of(plan, self._epoch, self._keys[at])
            image = _crop(plan, _decode(plan, self._jpegs[at]), draw)
            if plan.colour is not None and plan.augment:
                drawn = colour_jitter.draw(plan.seed, self._epoch, self._keys[at])
                image = colour_jitter.change(image, plan.colour, drawn)
            block["image"][slot] = image
            begin = draw.variant % spec.variants * spec.bytes_per_mask
            block["mask"][slot] = np.frombuffer(
                self._masks[at], np.uint8, spec.bytes_per_mask, begin
            )
            block["augment"][slot] = draw.augment


def _crop(plan: StreamPlan, image: images.ImageArray, draw: Draw) -> images.ImageArray:
    if plan.crop is None or not plan.augment:
        return images.square(image, plan.side, plan.shorter, draw.down, draw.across)
    height, width = image.shape[:2]
    size = plan.crop.size(height, width, draw.resized)
    return images.resized_crop(image, size, plan.side, draw.down, draw.across)


def keys_of(plan: StreamPlan, step: int) -> list[str]:
    """Keys of the images of a global batch in their order: those of worker 0 come first."""
    chosen = window(plan, window_of(plan, step))
    keys = window_rows(plan, chosen, ["key"]).column("key").to_pylist()
    order = _order(plan, chosen)[step - chosen.first_step].ravel()
    return [keys[at] for at in order]


def _order(plan: StreamPlan, window: Window) -> NDArray[np.int64]:
    """Which rows of a window its batches hold: (batches, workers, images)."""
    size = window.batches * plan.batch_size
    order = permutation(size, plan.seed, "rows", window.epoch, window.first_batch)
    return order.reshape(window.batches, plan.num_workers, plan.worker_batch)


def window_rows(plan: StreamPlan, window: Window, columns: list[str] | None = None) -> pa.Table:
    """The rows of a window in reading order, with their number in the split as `row`.

    None reads all columns that training needs.
    """
    if columns is None:
        mask = plan.manifest.mask_spec(plan.strategy, plan.side).column
        columns = ["key", "label", "image", mask]
    groups = [g for g in shards.row_groups(plan.manifest, "train") if g.first_row < plan.rows]
    cache = None if plan.cache is None else file_cache.opened(plan.cache)
    begin = window.first_batch * plan.batch_size
    end = begin + window.batches * plan.batch_size
    parts = []
    position = 0
    for at in permutation(len(groups), plan.seed, "groups", window.epoch):
        group = groups[at]
        rows = min(group.rows, plan.rows - group.first_row)  # that are used
        cut = slice(max(begin - position, 0), min(end - position, rows))
        if cut.start < cut.stop:
            parts.append(_rows(plan.uri, group, cut, columns, cache))
        position += rows
    return pa.concat_tables(parts)


def _rows(
    uri: str, group: RowGroup, cut: slice, columns: list[str], cache: storage.FileCache | None
) -> pa.Table:
    table = shards.read_row_group(uri, group, columns, cache)
    numbers = np.arange(group.first_row, group.first_row + group.rows)
    return table.append_column("row", pa.array(numbers)).slice(cut.start, cut.stop - cut.start)


def read_fixed_images(
    plan: StreamPlan, split: str, count: int, part: tuple[int, int] = (0, 1)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first images of a split, centre crop, variant 0: the same whenever it is called.

    Args:
        plan: what an image and a hole are.
        split: `train` or `val`.
        count: how many at most.
        part: (k, n) takes every n-th image from the k-th on, for n processes to share.

    Returns:
        image uint8 (N, side, side, 3) and mask uint8 (N, packed bytes).
    """
    spec = plan.manifest.mask_spec(plan.strategy, plan.side)
    squares, holes = [], []
    for group in shards.row_groups(plan.manifest, split):
        if group.first_row >= count:
            break
        table = shards.read_row_group(plan.uri, group, ["image", spec.column])
        for at in range(min(group.rows, count - group.first_row)):
            if (group.first_row + at) % part[1] == part[0]:
                jpeg = shards.cells(table.column("image").slice(at, 1))[0]
                mask = shards.cells(table.column(spec.column).slice(at, 1))[0]
                decoded = _decode(plan, jpeg)
                squares.append(images.square(decoded, plan.side, plan.shorter, 0.5, 0.5))
                holes.append(np.frombuffer(mask, np.uint8, spec.bytes_per_mask))
    if not squares:
        return (
            np.empty((0, plan.side, plan.side, 3), np.uint8),
            np.empty((0, spec.bytes_per_mask), np.uint8),
        )
    return np.stack(squares), np.stack(holes)


def _decode(plan: StreamPlan, jpeg: memoryview) -> images.ImageArray:
    try:
        return images.decode(jpeg)
    except ValueError as error:
        raise shards.damaged_shard_error(plan.uri, f"an image: {error}") from None


def _labels(rows: pa.Table) -> NDArray[np.int32]:
    labels: NDArray[np.int32] = rows.column("label").fill_null(-1).to_numpy().astype(np.int32)
    return labels
