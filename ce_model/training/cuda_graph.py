"""A training step as one CUDA graph: its hundreds of kernels are launched in one call.

At the paper's batch of 64 a GPU finishes a kernel sooner than Python can send the next. A step
reads nothing back to the host, so it can be recorded once and replayed on each batch.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ce_model import training
from ce_model.networks import NetworkConfig
from ce_model.training import Networks, Objective, Optimizers

Step = Callable[..., dict[str, Tensor]]
"""As `train_step`: image uint8 (B, S, S, 3), hidden bool (B, S, S) and of a sibling pretext origin
int64 (B, 2) -> metrics."""

WARM_UP_STEPS = 3  # in which cuDNN chooses its algorithms and torch.compile compiles


def make_step(
    networks: Networks,
    optimizers: Optimizers,
    device: torch.device,
    *,
    network: NetworkConfig,
    objective: Objective,
    dtype: torch.dtype,
) -> Step:
    """`train_step` with its networks: recorded as a CUDA graph where that can be.

    Where it cannot (`why_not_recorded`), each call is a plain `train_step`.
    """
    step = partial(
        training.train_step, networks, optimizers, network=network, objective=objective, dtype=dtype
    )
    return step if why_not_recorded(networks, device) else GraphedStep(step, device)


def why_not_recorded(networks: Networks, device: torch.device) -> str | None:
    """What keeps a step from being one CUDA graph; None where it is one, compiled or not."""
    if device.type != "cuda":
        return f"CUDA graphs are for GPUs, and this is a {device.type} device"
    if any(isinstance(part, DistributedDataParallel) for part in networks):
        return "the gradients of several workers are exchanged in the middle of a step"
    return None


class GraphedStep:
    """Takes the first steps as they are, then records one and replays it from there on.

    Weights, statistics and Adam's state stay the tensors that they are, so between two steps they
    can be saved, loaded and evaluated as always. Dropout draws from the seed set before a step.

    Attributes:
        plain: the same step, kernel by kernel.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        """`step` must always run the same kernels on the same tensors, and synchronise nothing."""
        self.plain = step
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *batch: Tensor) -> dict[str, Tensor]:
        """One step; images, masks and origins have the shape of the first ones.

        Raises:
            ValueError: they have another shape than those that were recorded.
        """
        if self._graph is None:
            if self._taken < WARM_UP_STEPS:
                self._taken += 1
                return self._warm_up(batch)
            self._record(batch)
        shapes, recorded = ([tuple(x.shape) for x in xs] for xs in (batch, self._batch))
        if shapes != recorded:
            raise ValueError(
                f"images, masks and what else there is have shapes {shapes}; the step was recorded "
                f"with {recorded}: give it full batches only"
            )
        assert self._graph is not None
        for kept, given in zip(self._batch, batch, strict=True):
            kept.copy_(given)
        self._graph.replay()
        # The next replay overwrites what this one has measured.
        return dict(zip(self._names, self._measured.clone().unbind(), strict=True))

    def _warm_up(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        # On a stream beside the default one, as a graph has to be recorded.
        current = torch.cuda.current_stream(batch[0].device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            metrics = self.plain(*batch)
        current.wait_stream(self._stream)
        return metrics

    def _record(self, batch: tuple[Tensor, ...]) -> None:
        self._batch = tuple(given.clone() for given in batch)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which bring the next batches, may use the device meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            metrics = self.plain(*self._batch)
            self._measured = torch.stack([value.float() for value in metrics.values()])
        self._names = list(metrics)
        self._graph = graph
