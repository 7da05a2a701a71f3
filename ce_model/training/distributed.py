"""What a step needs to know of the other ranks."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def ddp_settings() -> dict[str, bool]:
    """Arguments of DistributedDataParallel for these networks.

    Running statistics stay each rank's own; torch 2.13 renamed that argument, and with the other
    value torch 2.11 refuses the backward pass of the discriminator.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {buffers: False, "gradient_as_bucket_view": True}


def num_ranks() -> int:
    """Processes that train together; with one, nothing has to be exchanged."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def unwrap(network: nn.Module) -> nn.Module:
    """The network without its DistributedDataParallel wrapper."""
    if isinstance(network, DistributedDataParallel):
        module: nn.Module = network.module
        return module
    return network


def exchanging(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around forward and backward pass of a part: ranks exchange gradients in the last one only."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    alone: AbstractContextManager[None] = network.no_sync()
    return alone


def count_hidden(weight: Tensor, network: nn.Module) -> Callable[[], Tensor]:
    """Begin to count the pixels with a weight; the answer is the mean over the network's ranks.

    DistributedDataParallel averages the gradients. Divided by each rank's own count, a pixel of a
    rank with small holes would weigh more than one of a rank with large holes.
    """
    count = torch.count_nonzero(weight)
    if not isinstance(network, DistributedDataParallel):
        return lambda: count
    group = network.process_group
    ranks = torch.distributed.get_world_size(group)
    if ranks == 1:
        return lambda: count
    # The forward pass need not wait for it. A sum, because gloo has no average.
    reduction = torch.distributed.all_reduce(count, group=group, async_op=True)

    def mean() -> Tensor:
        reduction.wait()
        return count / ranks

    return mean
