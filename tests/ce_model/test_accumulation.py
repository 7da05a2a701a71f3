"""A batch that is taken in parts, and losses that are scaled for float16."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ce_model.networks import NetworkConfig, build_discriminator, build_generator
from ce_model.training import (
    Networks,
    Objective,
    Optimization,
    Optimizers,
    ddp_settings,
    default_objective,
    load_state_tensors,
    make_optimizers,
    resolve_precision,
    state_tensors,
    train_step,
)
from ce_model.training.loss_scale import FIRST, LEAST, RISES_AFTER, LossScale
from ce_model.training.step import by_parts

pytestmark = pytest.mark.usefixtures("one_thread")

UNET = NetworkConfig(preset="unet", output="full")
CENTER = NetworkConfig(bottleneck=16)


def batch(count: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    hidden = torch.zeros(count, side, side, dtype=torch.bool)
    for at in range(count):
        hidden[at, 4 : 9 + 2 * at, 6 : 20 + at] = True
    return image, hidden


def central(count: int) -> tuple[Tensor, Tensor]:
    image, hidden = batch(count, 128)
    hidden[:] = False
    hidden[:, 32:96, 32:96] = True
    return image, hidden


def make(
    network: NetworkConfig, objective: Objective, scaled: bool = False, **wanted: Any
) -> tuple[Networks, Optimizers, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    networks = Networks(
        build_generator(network, generator=generator),
        build_discriminator(network, generator=generator) if objective.adversarial else None,
    )
    optimizers = make_optimizers(networks, 1e-2, 1e-3, Optimization(**wanted), scaled=scaled)
    return networks, optimizers, {
        "network": network, "objective": objective, "dtype": torch.float32,
    }  # fmt: skip


def gradients(networks: Networks) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": parameter.grad
        for part, module in networks._asdict().items()
        if module is not None
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        away = (value.double() - second[name].double()).norm()
        assert away <= 1e-3 * value.double().norm() + 1e-6, name


@pytest.mark.parametrize("parts", [2, 4])
def test_without_batch_norm_the_parts_give_the_gradient_and_losses_of_the_whole(parts: int) -> None:
    objective = default_objective(UNET)
    found = []
    for accumulate in (1, parts):
        networks, optimizers, settings = make(UNET, objective, accumulate=accumulate)
        with torch.no_grad():  # its last layer begins at 0, where nothing below has a gradient
            for parameter in networks.generator.parameters():
                parameter += 0.001
        metrics = train_step(networks, optimizers, *batch(4, 32), **settings)
        found.append((gradients(networks), metrics))
    assert_close(found[0][0], found[1][0])
    assert_close(found[0][1], found[1][1])


def test_parts_that_are_alike_give_the_step_of_one_of_them_with_batch_norm_and_judge() -> None:
    # Of 2 images, some processors round an activation to the other side of a ReLU's bend.
    image, hidden = central(4)
    alone = make(CENTER, Objective())
    told = train_step(alone[0], alone[1], image, hidden, **alone[2])
    thrice = make(CENTER, Objective(), accumulate=3)
    repeated = [x.repeat_interleave(3, dim=0) for x in (image, hidden)]
    found = train_step(thrice[0], thrice[1], *repeated, **thrice[2])
    assert_close(gradients(alone[0]), gradients(thrice[0]))
    assert_close(told, found)
    # The running statistics have moved three times towards the same batch.
    norms = [
        next(m for m in networks.generator.modules() if isinstance(m, nn.BatchNorm2d))
        for networks in (alone[0], thrice[0])
    ]
    once, more = (norm.running_mean for norm in norms)
    assert once is not None and more is not None
    torch.testing.assert_close(more, once / 0.1 * (1 - 0.9**3), rtol=1e-3, atol=1e-6)


def test_ranks_take_their_shares_of_the_same_parts() -> None:
    number = torch.arange(12)
    (whole,) = by_parts(3, number)
    shares = [by_parts(3, number[at : at + 6])[0] for at in (0, 6)]
    for part in range(3):
        joined = torch.cat([share.chunk(3)[part] for share in shares])
        assert torch.equal(joined, whole.chunk(3)[part])


def test_a_batch_that_does_not_divide_into_the_parts_is_refused() -> None:
    networks, optimizers, settings = make(UNET, default_objective(UNET), accumulate=3)
    with pytest.raises(ValueError, match="the batch has 4 images; taken in 3 parts"):
        train_step(networks, optimizers, *batch(4, 32), **settings)


@pytest.mark.usefixtures("process_group")
def test_wrapped_networks_exchange_the_sum_of_all_parts() -> None:
    objective = default_objective(UNET)
    plain, optimizers, settings = make(UNET, objective, accumulate=2)
    wrapped = Networks(
        DistributedDataParallel(copy.deepcopy(plain.generator), **ddp_settings()), None
    )
    others = make_optimizers(wrapped, 1e-2, 1e-3, Optimization(accumulate=2))
    for seed in range(2):
        train_step(plain, optimizers, *batch(4, 32, seed), **settings)
        train_step(wrapped, others, *batch(4, 32, seed), **settings)
    assert_close(state_tensors(plain, optimizers), state_tensors(wrapped, others))


def test_a_scaled_loss_gives_the_same_bits() -> None:
    image, hidden = central(2)
    states = []
    for scaled in (False, True):
        networks, optimizers, settings = make(CENTER, Objective(), scaled, clip_norm=1.0)
        metrics = train_step(networks, optimizers, image, hidden, **settings)
        assert metrics["nonfinite"] == 0
        states.append(state_tensors(networks, optimizers))
    assert states[1].keys() - states[0].keys() == {"loss_scale.value", "loss_scale.applied"}
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def test_an_overflow_is_left_out_and_halves_the_scale_which_a_state_keeps() -> None:
    networks, optimizers, settings = make(UNET, default_objective(UNET), scaled=True)
    assert optimizers.scale is not None
    optimizers.scale.value.fill_(2.0**127)
    last = list(networks.generator.parameters())[-1]
    last.register_hook(lambda gradient: gradient * 2.0**60)
    before = state_tensors(networks, optimizers)
    metrics = train_step(networks, optimizers, *batch(2, 32), **settings)
    assert metrics["nonfinite"] == 1 and metrics["loss_scale"] == 2.0**127
    after = state_tensors(networks, optimizers)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"loss_scale.value"}
    assert after["loss_scale.value"] == 2.0**126
    others = make(UNET, default_objective(UNET), scaled=True)
    load_state_tensors(others[0], others[1], after)
    assert others[1].scale is not None and others[1].scale.value == 2.0**126


def test_the_scale_rises_after_many_applied_updates_and_never_falls_below_one() -> None:
    scale = LossScale(torch.device("cpu"))
    applied, skipped = torch.zeros(()), torch.ones(())
    for _ in range(RISES_AFTER - 1):
        scale.update(applied)
    assert scale.value == FIRST
    scale.update(applied)
    assert scale.value == 2 * FIRST
    for _ in range(40):
        scale.update(skipped)
    assert scale.value == LEAST
    for _ in range(RISES_AFTER):
        scale.update(applied)
    assert scale.value == 2 * LEAST


def test_float16_is_for_gpus() -> None:
    assert resolve_precision("fp16", "cuda") == torch.float16
    with pytest.raises(ValueError, match="precision is fp16; this cpu device has no fast fp16"):
        resolve_precision("fp16", "cpu")
