"""From blocks of the stream to batches on the training device, before the step that needs them.

A GPU is fed from a thread: while it computes, the thread copies the next batches into page-locked
memory and sends them over a stream of their own, and unpacks their holes there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ce_model import mask_tensors
from ce_model.pretexts.draws import origin_of
from pipelines.data import stream
from pipelines.runtime.prefetch import prefetch

BATCHES_AHEAD = 2
COLUMNS = ("image", "mask", "augment")
ORIGIN = ("row", "step")


class DeviceBatch(NamedTuple):
    """A batch for `train_step`.

    Shape:
        image: uint8 (B, S, S, 3); hidden: bool (B, S, S), True where hidden; origin: int64 (B, 2),
        what a sibling pretext draws from, None for inpainting.
    """

    image: Tensor
    hidden: Tensor
    origin: Tensor | None = None

    @property
    def given(self) -> tuple[Tensor, ...]:
        """What there is, as the step takes it."""
        return tuple(each for each in self if each is not None)


def feed(
    batches: Iterator[stream.Batch], device: torch.device, seed: int | None = None
) -> Iterator[DeviceBatch]:
    """The batches on the device, augmented, in their order; with a seed also their origins."""
    if device.type == "cuda":
        return _feed_gpu(batches, device, seed)
    # The blocks are read-only memory shared with the object store; torch wants its own.
    return (
        _batch([torch.tensor(batch[name], device=device) for name in _columns(seed)], seed)
        for batch in batches
    )


def _columns(seed: int | None) -> tuple[str, ...]:
    return COLUMNS if seed is None else COLUMNS + ORIGIN


def _batch(columns: list[Tensor], seed: int | None) -> DeviceBatch:
    found = augment(*columns[: len(COLUMNS)])
    if seed is None:
        return found
    row, step = columns[len(COLUMNS) :]
    return found._replace(origin=origin_of(row, step, seed))


def augment(image: Tensor, bits: Tensor, augment: Tensor) -> DeviceBatch:
    """Columns of the stream, with images flipped and holes turned as it drew."""
    hidden = mask_tensors.unpack(bits, image.shape[1])
    hidden = mask_tensors.apply_symmetry(hidden, augment % stream.FLIP)
    flip = (augment >= stream.FLIP).view(-1, 1, 1, 1)
    return DeviceBatch(torch.where(flip, image.flip(2), image), hidden)


def _feed_gpu(
    batches: Iterator[stream.Batch], device: torch.device, seed: int | None
) -> Iterator[DeviceBatch]:
    sender = _Sender(device, seed)
    for fed, arrived in prefetch((sender.send(batch) for batch in batches), BATCHES_AHEAD):
        training = torch.cuda.current_stream(device)
        training.wait_event(arrived)
        for tensor in fed.given:
            tensor.record_stream(training)  # its memory is not given away before that is done
        yield fed


class _Sender:
    """Batches over a stream of their own, through two page-locked buffers in turn."""

    def __init__(self, device: torch.device, seed: int | None) -> None:
        self._device, self._seed = device, seed
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: list[_Buffer] = []
        self._turn = 0

    def send(self, batch: stream.Batch) -> tuple[DeviceBatch, torch.cuda.Event]:
        """The batch and the event after which it is on the device."""
        with torch.cuda.stream(self._stream):  # of this thread, the device too
            if len(self._buffers) < 2:
                self._buffers.append(_Buffer(batch, _columns(self._seed)))
            buffer = self._buffers[self._turn]
            self._turn = 1 - self._turn
            fed = _batch(buffer.send(batch, self._device), self._seed)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        return fed, arrived


class _Buffer:
    """Page-locked memory for a batch."""

    def __init__(self, like: stream.Batch, names: tuple[str, ...]) -> None:
        self._left = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._names = names
        self._columns = [torch.from_numpy(np.empty_like(like[name])) for name in names]
        self._columns = [column.pin_memory() for column in self._columns]

    def send(self, batch: stream.Batch, device: torch.device) -> list[Tensor]:
        self._left.synchronize()  # the batch before
        for name, column in zip(self._names, self._columns, strict=True):
            np.copyto(column.numpy(), batch[name])
        sent = [column.to(device, non_blocking=True) for column in self._columns]
        self._left.record()
        return sent
