"""Batch norm over ranks: the same as over the joined batch, forwards, backwards and in training."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_helpers import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ce_model.network_config import NetworkConfig
from ce_model.training import (
    Networks,
    Objective,
    Optimization,
    ddp_settings,
    make_optimizers,
    state_tensors,
    synchronise_norms,
    train_step,
)
from ce_model.training.sync_norm import each_rank_alone

IMAGES = 8
PLAIN = Optimization(optimizer="sgd")  # Adam divides by the size of a gradient, also of noise
SETTINGS: dict[str, Any] = {
    "network": NetworkConfig(output="full"),
    "objective": Objective(adversarial=0.01, overlap=0, region="image"),
    "dtype": torch.float32,
}


class Judge(nn.Module):
    """A discriminator with both kinds of norm. Shape: (B, 3, S, S) -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4))
        self.last = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(self.convolution(x).mean(dim=(2, 3)))
        return answer.flatten()


def make_networks() -> Networks:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)
    return Networks(nn.Sequential(*layers), Judge())


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    size = (IMAGES, 128, 128)
    levels = torch.arange(1, 1 + IMAGES).view(-1, 1, 1, 1) * 30  # each rank's images differ
    image = (torch.rand(*size, 3, generator=generator) * levels).to(torch.uint8)
    hidden = torch.zeros(size, dtype=torch.bool)
    for at in range(IMAGES):
        hidden[at, 20 : 30 + 9 * at, 30:90] = True
    return image, hidden


def steps_of_one_process() -> dict[str, torch.Tensor]:
    networks = make_networks()
    optimizers = make_optimizers(networks, 1e-2, 1e-2, PLAIN)
    for step in range(3):
        train_step(networks, optimizers, *batch(step), **SETTINGS)
    return state_tensors(networks, optimizers)


def _rank(rank: int, ranks: int) -> None:
    plain = make_networks()
    for network in plain:
        synchronise_norms(network)
    optimizers = make_optimizers(plain, 1e-2, 1e-2, PLAIN)
    wrapped = Networks(*(DistributedDataParallel(n, **ddp_settings()) for n in plain))
    part = slice(rank * IMAGES // ranks, (rank + 1) * IMAGES // ranks)
    for step in range(3):
        image, hidden = batch(step)
        train_step(wrapped, optimizers, image[part], hidden[part], **SETTINGS)
    ours, theirs = state_tensors(wrapped, optimizers), steps_of_one_process()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name.startswith(("generator.", "discriminator.")):
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_ranks_train_the_network_of_one(ranks: int, tmp_path: Path) -> None:
    run_ranks(_rank, ranks, tmp_path, ranks)


@pytest.fixture
def one_rank(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 3)])
@pytest.mark.usefixtures("one_rank")
def test_on_one_rank_it_is_batch_norm(shape: tuple[int, ...]) -> None:
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain, ours = kind(5), nn.Sequential(kind(5))
    synchronise_norms(ours)
    assert list(ours.state_dict()) == [f"0.{name}" for name in plain.state_dict()]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 10
    results = []
    for layer in (plain, ours):
        value = x.clone().requires_grad_()
        answer = layer(value)
        (answer * torch.arange(answer.numel()).view(shape)).mean().backward()
        results.append((answer, value.grad, *(p.grad for p in layer.parameters())))
        results[-1] += tuple(b for b in layer.buffers())
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-3)
    ours.eval()
    torch.testing.assert_close(ours(x), plain.eval()(x), rtol=1e-5, atol=1e-4)


def test_a_rank_alone_asks_no_other_rank() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronise_norms(network)
    kind = type(network[0])
    assert kind is not nn.BatchNorm2d
    with each_rank_alone(network):  # there is no process group here
        network(torch.zeros(2, 3, 4, 4))
    assert type(network[0]) is kind
