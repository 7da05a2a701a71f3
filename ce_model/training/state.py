"""The state of a training as named tensors, and back."""

from collections.abc import Mapping

from torch import Tensor

from ce_model.training.distributed import unwrap
from ce_model.training.step import Networks, Optimizers


def state_tensors(networks: Networks, optimizers: Optimizers) -> dict[str, Tensor]:
    """Everything a step changes, by flat name: private, contiguous copies on the CPU."""
    return {
        name: tensor.to("cpu", copy=True).contiguous()
        for name, tensor in _named_state(networks, optimizers).items()
    }


def load_state_tensors(
    networks: Networks, optimizers: Optimizers, tensors: Mapping[str, Tensor]
) -> None:
    """Continue from `state_tensors`. Names and shapes have to agree exactly."""
    state = _named_state(networks, optimizers)
    missing, unexpected = sorted(state.keys() - tensors), sorted(tensors.keys() - state)
    if missing or unexpected:
        raise ValueError(
            f"the training state does not fit the networks: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}) and {len(unexpected)} are unexpected "
            f"({', '.join(unexpected[:3])}); use the network and objective it was saved with"
        )
    for name, tensor in state.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensors[name].shape)} in the training state; the network "
                f"needs {tuple(tensor.shape)}; use the network settings it was saved with"
            )
    for name, tensor in state.items():
        tensor.copy_(tensors[name])


def _named_state(networks: Networks, optimizers: Optimizers) -> dict[str, Tensor]:
    """The live tensors of both networks and optimizers by flat name."""
    state: dict[str, Tensor] = {}
    for part in Networks._fields:
        network, optimizer = getattr(networks, part), getattr(optimizers, part)
        if network is None:
            continue
        for name, tensor in unwrap(network).state_dict().items():
            state[f"{part}.{name}"] = tensor
        for name, parameter in unwrap(network).named_parameters():
            for key, tensor in optimizer.state[parameter].items():
                if tensor is not None:  # of SGD without momentum
                    state[f"{part}_optimizer.{key}.{name}"] = tensor
    if optimizers.average is not None:
        for name, tensor in optimizers.average.tensors().items():
            state[f"average.{name}"] = tensor
    if optimizers.scale is not None:
        for name, tensor in optimizers.scale.tensors().items():
            state[f"loss_scale.{name}"] = tensor
    return state
