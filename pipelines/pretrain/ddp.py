"""Both networks wrapped for several ranks, and checked to be equal on all of them."""

import ray.train
import ray.train.torch
import torch
import torch.distributed

from ce_model import training
from ce_model.training import Networks
from pipelines.pretrain.task import Task


def distribute(networks: Networks, task: Task) -> Networks:
    """Wrap in DDP, with batch norm over all ranks, when there are several; compile if set."""
    if training.num_ranks() > 1:
        for network in networks:
            if network is not None:
                training.synchronise_norms(network)

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        settings = training.ddp_settings()
        wrapped = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=settings)
        if task.compile:
            wrapped.compile()
        return wrapped  # type: ignore[no-any-return]

    generator, discriminator = networks
    return Networks(wrap(generator), None if discriminator is None else wrap(discriminator))


def share_buffers(networks: Networks) -> None:
    """The average over the ranks for all: each rank's statistics come from its own images."""
    if training.num_ranks() == 1:
        return
    for module in networks:
        for buffer in module.buffers() if module is not None else ():
            if buffer.is_floating_point():
                torch.distributed.all_reduce(buffer)
                buffer /= training.num_ranks()


def require_equal_parameters(networks: Networks) -> None:
    """Stop a run whose ranks have drifted apart: it would train two different networks.

    Raises:
        RuntimeError: the bits of the parameters differ between ranks.
    """
    if training.num_ranks() == 1:
        return
    parameters = [p for module in networks if module is not None for p in module.parameters()]
    bits = torch.stack([p.detach().view(torch.int32).sum(dtype=torch.int64) for p in parameters])
    lowest, highest = bits.clone(), bits
    torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        raise RuntimeError("the ranks hold different parameters; the last checkpoint is still good")
