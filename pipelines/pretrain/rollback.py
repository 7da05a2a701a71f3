"""Back to the last good weights: the run goes on from them with the batches that follow.

The updates since that checkpoint are lost: one of them led the weights to where nothing is finite
any more. The batches of those steps are not trained again, so the order of the stream stays.
"""

import torch
import torch.distributed

from ce_model import training
from ce_model.training import Networks, Optimizers
from pipelines.models import checkpoint


def roll_back(
    stage_uri: str, networks: Networks, optimizers: Optimizers, rank: int, device: torch.device
) -> int | None:
    """Load the newest good checkpoint on all ranks; its step, or None where there is none.

    The thread that writes checkpoints must be idle.
    """
    step = -1
    if rank == 0:
        found = checkpoint.latest(stage_uri, usable=is_good)
        step = -1 if found is None else found.step
    if training.num_ranks() > 1:
        told = torch.tensor(step, device=device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        step = int(told)
    if step < 0:
        return None
    found = checkpoint.at_step(stage_uri, step)
    training.load_state_tensors(networks, optimizers, found.tensors())
    return step


def is_good(found: checkpoint.Checkpoint) -> bool:
    """Whether the last update before it was applied."""
    return not found.state.get("divergence", {}).get("in_a_row", 0)
