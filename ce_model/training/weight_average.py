"""A moving average of the weights, on the device, as a recorded step needs it."""

import copy

import torch
from torch import Tensor, nn

from ce_model.training.distributed import unwrap

AVERAGE_WARM_UP = 10.0


class WeightAverage:
    """Exponential moving average of a network's weights and statistics, as a network of its own.

    The decay grows with the updates as (1 + n) / (10 + n) up to its full value, so that the
    untrained weights are soon forgotten. A step that was not applied leaves the average alone.

    Attributes:
        module: the averaged network.
        updates: 0-d, how often it was updated.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start from the network as it is."""
        self.module = copy.deepcopy(unwrap(network)).requires_grad_(False)
        self.decay = decay
        device = next(self.module.parameters()).device
        self.updates = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor) -> None:
        """Move towards the network where `skip`, 0-d, is 0."""
        decay = ((1 + self.updates) / (AVERAGE_WARM_UP + self.updates)).clamp(max=self.decay)
        share = (1 - decay) * (1 - skip)
        self.updates += 1 - skip
        live = unwrap(network).state_dict()
        mine = self.module.state_dict()
        names = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        change = torch._foreach_sub([live[name] for name in names], [mine[name] for name in names])
        torch._foreach_mul_(change, share)
        torch._foreach_add_([mine[name] for name in names], change)
        for name in mine.keys() - names:  # counts of batches
            mine[name].copy_(live[name])

    def tensors(self) -> dict[str, Tensor]:
        """The live state by name."""
        return {**self.module.state_dict(), "updates": self.updates}
