"""The training step: what it optimises, what it refuses to apply, what it can resume."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_helpers import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ce_model.masks import Strategy, mask_for
from ce_model.networks import NetworkConfig, build_discriminator, build_generator, input_side
from ce_model.training import (
    Networks,
    Objective,
    Optimizers,
    ddp_settings,
    default_learning_rates,
    default_objective,
    dropout_shifts_statistics,
    estimate_statistics,
    fill,
    load_state_tensors,
    make_optimizers,
    make_views,
    predict,
    resolve_precision,
    state_tensors,
    train_step,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CENTER = NetworkConfig(bottleneck=32)
FULL = NetworkConfig(output="full", bottleneck=32)
ALEXNET = NetworkConfig(preset="alexnet", output="full", dropout=0.0)


def _batch(network: NetworkConfig, batch: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth random images and their masks."""
    generator = torch.Generator().manual_seed(seed)
    side = input_side(network)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    image = smooth.mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    strategy: Strategy = "central" if network.output == "center" else "random_region"
    masks = np.stack([mask_for(seed, strategy, side, str(i), 0) for i in range(batch)])
    return image, torch.from_numpy(masks)


def _networks(network: NetworkConfig, objective: Objective, seed: int = 0) -> Networks:
    generator = torch.Generator().manual_seed(seed)
    return Networks(
        build_generator(network, generator=generator),
        build_discriminator(network, generator=generator) if objective.adversarial else None,
    )


def _setup(network: NetworkConfig, seed: int = 0) -> tuple[Networks, Optimizers, dict[str, Any]]:
    objective = default_objective(network)
    networks = _networks(network, objective, seed)
    settings = {"network": network, "objective": objective, "dtype": torch.float32}
    return networks, make_optimizers(networks, 2e-3, 2e-4), settings


def _assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    changed = [name for name in first if not torch.equal(first[name], second[name])]
    assert changed == []


# What the network sees and predicts


def test_a_centre_view_hides_56_px_and_asks_for_64_px() -> None:
    image, hidden = _batch(CENTER)
    views = make_views(image, hidden, CENTER, Objective())
    scaled = image.permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(views.target, scaled[:, :, 32:96, 32:96])
    hole = torch.zeros(128, 128, dtype=torch.bool)
    hole[36:92, 36:92] = True
    torch.testing.assert_close(views.context[:, :, ~hole], scaled[:, :, ~hole])
    colour = torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1) / 127.5 - 1
    torch.testing.assert_close(views.context[:, :, hole], colour.expand(4, 3, 56**2))
    assert torch.equal(views.hole[0, 0], hole[32:96, 32:96])
    assert torch.equal(views.weight[0, 0], torch.where(hole[32:96, 32:96], 1.0, 10.0))


def test_the_context_is_channels_last() -> None:
    context = make_views(*_batch(CENTER), CENTER, Objective()).context
    assert context.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("region", ["hole", "image"])
def test_a_full_view_weighs_the_hole_or_the_image(region: Any) -> None:
    image, hidden = _batch(ALEXNET, batch=2)
    views = make_views(image, hidden, ALEXNET, Objective(overlap=0, region=region))
    expected = hidden if region == "hole" else torch.ones_like(hidden)
    assert torch.equal(views.weight[:, 0], expected.float())
    assert torch.equal(views.hole[:, 0], hidden)
    assert views.target.shape == (2, 3, 227, 227)


def test_images_of_another_size_are_refused() -> None:
    image, hidden = _batch(CENTER)
    with pytest.raises(ValueError, match=r"preset inpaint needs \(B, 128, 128, 3\)"):
        make_views(image[:, :96], hidden[:, :96], CENTER, Objective())


# One step


def test_a_step_is_a_discriminator_step_then_a_generator_step_on_the_same_prediction() -> None:
    """Against the step written out with plain torch: BCE, unfused Adam, fresh forward passes."""
    networks, optimizers, settings = _setup(CENTER)
    generator, discriminator = copy.deepcopy(networks)
    assert discriminator is not None
    image, hidden = _batch(CENTER)
    context, target, _, weight, _ = make_views(image, hidden, CENTER, Objective())
    metrics = train_step(networks, optimizers, image, hidden, **settings)

    adam_g = torch.optim.Adam(generator.parameters(), 2e-3, (0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999))
    bce = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(len(image)), torch.zeros(len(image))
    fake = generator(context)
    real_logits, fake_logits = discriminator(target), discriminator(fake.detach())
    loss_d = bce(real_logits, ones) + bce(fake_logits, zeros)
    loss_d.backward()
    adam_d.step()
    discriminator_gradients = [parameter.grad.clone() for parameter in discriminator.parameters()]
    reconstruction = (weight * (fake - target) ** 2).sum() / target.numel()
    joint = 0.999 * reconstruction + 0.001 * bce(discriminator(fake), ones)
    joint.backward()
    adam_g.step()

    expected = {"discriminator": loss_d, "joint": joint, "reconstruction": reconstruction}
    for name, value in expected.items():
        torch.testing.assert_close(metrics[f"loss/{name}"], value.detach(), rtol=1e-4, atol=0)
    answers = {
        "real": real_logits.sigmoid().mean(),
        "fake": fake_logits.sigmoid().mean(),
        "accuracy": torch.cat([real_logits > 0, fake_logits <= 0]).float().mean(),
    }
    for name, value in answers.items():
        torch.testing.assert_close(metrics[f"discriminator/{name}"], value, rtol=1e-4, atol=0)
    # Adam's first step divides a gradient by its own size, so a rounding error in a tiny one
    # becomes visible in the weight: the gradients have to agree closely, and nearly all weights.
    gradients = [parameter.grad for parameter in generator.parameters()]
    for ours, reference, expected_gradients, optimizer, rate in (
        (networks.generator, generator, gradients, optimizers.generator, 2e-3),
        (
            networks.discriminator,
            discriminator,
            discriminator_gradients,
            optimizers.discriminator,
            2e-4,
        ),
    ):
        assert ours is not None and optimizer is not None
        for mine, its, gradient in zip(
            ours.parameters(), reference.parameters(), expected_gradients, strict=True
        ):
            mean = optimizer.state[mine]["exp_avg"]  # (1 - beta1) * gradient
            torch.testing.assert_close(
                mean, 0.5 * gradient, rtol=1e-2, atol=1e-3 * gradient.abs().max().item()
            )
            assert ((mine - its).abs() > 0.05 * rate).float().mean() < 0.01
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in expected_gradients]))
        name = "generator" if ours is networks.generator else "discriminator"
        torch.testing.assert_close(metrics[f"grad_norm/{name}"], norm, rtol=1e-3, atol=0)


def test_a_step_reports_scalars_without_gradient() -> None:
    networks, optimizers, settings = _setup(CENTER)
    metrics = train_step(networks, optimizers, *_batch(CENTER), **settings)
    assert set(metrics) == {
        "loss/reconstruction",
        "loss/adversarial",
        "loss/discriminator",
        "loss/joint",
        "discriminator/real",
        "discriminator/fake",
        "discriminator/accuracy",
        "grad_norm/generator",
        "grad_norm/discriminator",
        "nonfinite",
    }
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert metrics["nonfinite"] == 0


@pytest.mark.parametrize("network", [ALEXNET, FULL])
def test_training_on_one_batch_lowers_its_reconstruction_loss(network: NetworkConfig) -> None:
    networks, optimizers, settings = _setup(network)
    batch = _batch(network, batch=2)
    losses = [
        train_step(networks, optimizers, *batch, **settings)["loss/reconstruction"].item()
        for _ in range(8)
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_without_an_adversarial_loss_there_is_no_discriminator() -> None:
    networks, optimizers, settings = _setup(ALEXNET)
    assert networks.discriminator is None
    assert optimizers.discriminator is None
    metrics = train_step(networks, optimizers, *_batch(ALEXNET, batch=2), **settings)
    assert set(metrics) == {
        "loss/reconstruction",
        "loss/joint",
        "grad_norm/generator",
        "nonfinite",
    }
    assert metrics["loss/joint"] == metrics["loss/reconstruction"]


def test_the_generator_step_adds_nothing_to_the_discriminators_gradient() -> None:
    networks, optimizers, settings = _setup(CENTER)
    settings["objective"] = Objective(adversarial=1.0)
    train_step(networks, optimizers, *_batch(CENTER), **settings)
    assert networks.discriminator is not None
    assert optimizers.discriminator is not None
    for weight in networks.discriminator.parameters():
        assert weight.requires_grad
        assert weight.grad is not None
        mean = optimizers.discriminator.state[weight]["exp_avg"]  # (1 - beta1) * its own gradient
        torch.testing.assert_close(mean, 0.5 * weight.grad)


# Nothing that is not finite is applied


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_a_bad_gradient_changes_nothing_that_depends_on_it(part: str, value: float) -> None:
    networks, optimizers, settings = _setup(CENTER)
    train_step(networks, optimizers, *_batch(CENTER), **settings)
    before = state_tensors(networks, optimizers)
    weight = next(getattr(networks, part).parameters())
    handle = weight.register_hook(lambda gradient: gradient * value)
    metrics = train_step(networks, optimizers, *_batch(CENTER, seed=1), **settings)
    handle.remove()
    after = state_tensors(networks, optimizers)

    assert metrics["nonfinite"] == 1
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    changed = {name for name in changed if not name.endswith("num_batches_tracked")}
    if part == "discriminator":  # a wrong discriminator would mislead the generator too
        assert changed == set()
    else:
        assert changed
        assert all(name.startswith("discriminator") for name in changed)
    # and training goes on
    assert train_step(networks, optimizers, *_batch(CENTER), **settings)["nonfinite"] == 0


@pytest.mark.parametrize("network", [CENTER, ALEXNET])
def test_a_bad_activation_changes_no_weight_optimizer_state_or_statistic(
    network: NetworkConfig,
) -> None:
    networks, optimizers, settings = _setup(network)
    batch = _batch(network, batch=2)
    train_step(networks, optimizers, *batch, **settings)
    before = state_tensors(networks, optimizers)

    def spoil(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * float("nan")

    first = next(m for m in networks.generator.modules() if isinstance(m, nn.Conv2d))
    handle = first.register_forward_hook(spoil)
    assert train_step(networks, optimizers, *batch, **settings)["nonfinite"] == 1
    handle.remove()
    after = state_tensors(networks, optimizers)
    for state in (before, after):  # a count of batches, which nothing reads
        for name in [name for name in state if name.endswith("num_batches_tracked")]:
            del state[name]
    _assert_equal(before, after)


# Dropout and the statistics of batch norm


def test_statistics_without_dropout_give_evaluation_the_variances_it_meets() -> None:
    network = NetworkConfig(preset="alexnet", output="full")  # dropout 0.5
    networks, optimizers, settings = _setup(network)
    image, hidden = _batch(network)
    for _ in range(2):
        train_step(networks, optimizers, image, hidden, **settings)
    generator = networks.generator
    before = {name: weight.clone() for name, weight in generator.named_parameters()}
    views = make_views(image, hidden, network, settings["objective"])

    def shift() -> float:
        """Evaluation against the statistics of the same batch, without dropout."""
        with torch.no_grad():
            seen = generator.eval()(views.context)
            norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
            for norm in norms:
                norm.train()
                norm.momentum = 0.0
            expected = generator(views.context)
            for norm in norms:
                norm.momentum = 0.1
        generator.train()
        return float((seen - expected).norm() / expected.norm())

    assert shift() > 0.1
    estimate_statistics(generator, image, hidden, **settings)
    assert shift() < 0.03  # batch norm trains with the biased variance and keeps the unbiased
    assert generator.training
    assert all(m.training for m in generator.modules())
    _assert_equal(before, dict(generator.named_parameters()))


def test_statistics_are_averages_over_batches_and_drop_what_was_before() -> None:
    network = NetworkConfig(preset="alexnet", output="full")
    networks, _, settings = _setup(network)
    norm = networks.generator.get_submodule("encoder.norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    image, hidden = _batch(network, batch=40)
    estimate_statistics(networks.generator, image[:32], hidden[:32], **settings)
    first = norm.running_mean.clone()  # type: ignore[union-attr]
    estimate_statistics(networks.generator, image[32:], hidden[32:], **settings)
    second = norm.running_mean.clone()  # type: ignore[union-attr]
    estimate_statistics(networks.generator, image, hidden, **settings)
    torch.testing.assert_close(norm.running_mean, (first + second) / 2)
    assert norm.momentum == 0.1


@pytest.mark.parametrize(
    ("network", "shifts"),
    [
        (NetworkConfig(preset="alexnet", output="full"), True),
        (NetworkConfig(preset="alexnet", output="full", norm="none"), False),
        (ALEXNET, False),
        (CENTER, False),
    ],
)
def test_dropout_shifts_only_statistics_that_there_are(
    network: NetworkConfig, shifts: bool
) -> None:
    assert dropout_shifts_statistics(build_generator(network)) is shifts


# Resuming


@pytest.mark.parametrize("network", [CENTER, ALEXNET])
def test_a_loaded_state_continues_bit_for_bit(network: NetworkConfig) -> None:
    networks, optimizers, settings = _setup(network)
    for seed in range(2):
        train_step(networks, optimizers, *_batch(network, 2, seed), **settings)
    saved = state_tensors(networks, optimizers)
    resumed, resumed_optimizers, _ = _setup(network, seed=9)
    load_state_tensors(resumed, resumed_optimizers, saved)
    for seed in range(2, 4):
        batch = _batch(network, 2, seed)
        first = train_step(networks, optimizers, *batch, **settings)
        second = train_step(resumed, resumed_optimizers, *batch, **settings)
        _assert_equal(first, second)
    _assert_equal(state_tensors(networks, optimizers), state_tensors(resumed, resumed_optimizers))


def test_the_state_is_a_private_copy() -> None:
    networks, optimizers, settings = _setup(CENTER)
    saved = state_tensors(networks, optimizers)
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    train_step(networks, optimizers, *_batch(CENTER), **settings)
    _assert_equal(saved, kept)
    assert all(tensor.is_contiguous() for tensor in saved.values())


def test_a_state_that_does_not_fit_is_refused_before_anything_is_loaded() -> None:
    networks, optimizers, _ = _setup(CENTER)
    before = state_tensors(networks, optimizers)
    state = state_tensors(*_setup(CENTER, seed=9)[:2])
    renamed = dict(state)
    renamed["generator.extra"] = renamed.pop("generator.encoder.e1.0.weight")
    with pytest.raises(ValueError, match=r"1 tensors are missing \(generator\.encoder\.e1"):
        load_state_tensors(networks, optimizers, renamed)
    state["generator.encoder.e6.1.weight"] = torch.zeros(16, 8192)
    with pytest.raises(ValueError, match=r"e6\.1\.weight has shape \(16, 8192\)"):
        load_state_tensors(networks, optimizers, state)
    _assert_equal(state_tensors(networks, optimizers), before)


# Devices, precision, wrappers


@pytest.mark.skipif(
    resolve_precision("auto", torch.device("cpu")) != torch.bfloat16,
    reason="this processor only imitates bfloat16, which takes minutes",
)
def test_bfloat16_follows_float32_within_2_percent() -> None:
    # benchmarks/train_step.py does the same over 50 steps with both whole presets
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        networks, optimizers, settings = _setup(CENTER)
        settings["dtype"] = dtype
        history = [
            train_step(networks, optimizers, *_batch(CENTER, 4, seed % 5), **settings)
            for seed in range(15)
        ]
        losses[dtype] = np.mean([m["loss/reconstruction"].item() for m in history[-5:]])
        assert all(m["nonfinite"] == 0 for m in history)
        assert losses[dtype] < 0.9 * history[0]["loss/reconstruction"].item()
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)


def test_a_bfloat16_step_convolves_in_bfloat16_and_keeps_weights_and_losses_in_float32() -> None:
    networks, optimizers, settings = _setup(CENTER)
    seen = []
    for network in networks:
        assert network is not None
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    settings["dtype"] = torch.bfloat16
    metrics = train_step(networks, optimizers, *_batch(CENTER), **settings)
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 5 + 3 * 4  # the discriminator sees real, predicted, and predicted again
    state = state_tensors(networks, optimizers).values()
    assert {value.dtype for value in [*metrics.values(), *state] if value.is_floating_point()} == {
        torch.float32
    }


def _wrapped(networks: Networks) -> Networks:
    settings = ddp_settings()
    return Networks(*(n if n is None else DistributedDataParallel(n, **settings) for n in networks))


@pytest.mark.usefixtures("process_group")
def test_wrapped_networks_take_the_same_steps_and_have_the_same_state() -> None:
    plain, plain_optimizers, settings = _setup(CENTER)
    inner, _, _ = _setup(CENTER)
    wrapped = _wrapped(inner)
    wrapped_optimizers = make_optimizers(wrapped, 2e-3, 2e-4)
    for seed in range(2):
        batch = _batch(CENTER, seed=seed)
        train_step(plain, plain_optimizers, *batch, **settings)
        train_step(wrapped, wrapped_optimizers, *batch, **settings)
    _assert_equal(
        state_tensors(plain, plain_optimizers), state_tensors(wrapped, wrapped_optimizers)
    )


def _bad_gradient_on_rank_1(rank: int) -> None:
    inner, _, settings = _setup(CENTER)
    wrapped = _wrapped(inner)
    optimizers = make_optimizers(wrapped, 2e-3, 2e-4)
    batch = _batch(CENTER, seed=rank)
    train_step(wrapped, optimizers, *batch, **settings)
    before = state_tensors(wrapped, optimizers)
    if rank == 1:
        weight = next(inner.generator.parameters())
        weight.register_hook(lambda gradient: gradient * float("nan"))
    assert train_step(wrapped, optimizers, *batch, **settings)["nonfinite"] == 1
    after = state_tensors(wrapped, optimizers)
    for name in before:
        if name.startswith("generator") and not name.endswith("num_batches_tracked"):
            assert torch.equal(before[name], after[name]), name


@pytest.mark.slow
def test_a_bad_gradient_on_one_rank_is_applied_on_no_rank(tmp_path: Path) -> None:
    run_ranks(_bad_gradient_on_rank_1, 2, tmp_path)


def _unequal_holes(rank: int) -> None:
    objective = default_objective(ALEXNET)  # the hidden pixels only
    settings = {"network": ALEXNET, "objective": objective, "dtype": torch.float32}
    image, nothing = _batch(ALEXNET)[0], torch.zeros(4, 227, 227, dtype=torch.bool)
    part = slice(2 * rank, 2 * rank + 2)
    for sides in ((90, 60, 9, 5), (0, 0, 50, 7)):  # of the squares hidden on ranks 0 0 1 1, px
        hidden = nothing.clone()
        for mask, side in zip(hidden, sides, strict=True):
            mask[20 : 20 + side, 30 : 30 + side] = True
        torch.manual_seed(0)
        # Without batch norm, whose statistics are each rank's own.
        whole = Networks(nn.Conv2d(3, 3, 3, padding=1), None)
        wrapped = _wrapped(copy.deepcopy(whole))
        expected = train_step(whole, make_optimizers(whole, 1e-3, 0.0), image, hidden, **settings)
        found = train_step(
            wrapped, make_optimizers(wrapped, 1e-3, 0.0), image[part], hidden[part], **settings
        )
        assert found["nonfinite"] == 0
        for ours, theirs in zip(
            wrapped.generator.parameters(), whole.generator.parameters(), strict=True
        ):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
        loss = found["loss/reconstruction"]
        dist.all_reduce(loss)
        torch.testing.assert_close(loss / 2, expected["loss/reconstruction"])


def test_two_ranks_with_holes_of_unequal_size_give_the_gradient_of_the_joined_batch(
    tmp_path: Path,
) -> None:
    run_ranks(_unequal_holes, 2, tmp_path)


def test_precision_is_what_the_processor_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, avx in [(True, False), (False, True), (False, False)]:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        expected = torch.bfloat16 if amx or avx else torch.float32
        assert resolve_precision("auto", "cpu") == expected
        assert resolve_precision("fp32", "cpu") == torch.float32
    with pytest.raises(ValueError, match="precision is bf16; this cpu device has no bf16"):
        resolve_precision("bf16", "cpu")
    # A GPU without the arithmetic emulates it, slowly.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve_precision("auto", "cuda") == torch.bfloat16
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation
    )
    assert resolve_precision("auto", "cuda") == torch.float32


# Filling in


@pytest.mark.parametrize("network", [CENTER, ALEXNET])
def test_fill_changes_hidden_pixels_only_and_leaves_the_network_as_it_was(
    network: NetworkConfig,
) -> None:
    networks, optimizers, settings = _setup(network)
    image, hidden = _batch(network, batch=2)
    before = state_tensors(networks, optimizers)
    filled = fill(networks.generator, image, hidden, **settings)
    assert filled.dtype == torch.uint8
    assert filled.shape == image.shape
    changed = (filled != image).any(-1)
    assert changed.any()
    assert not (changed & ~hidden).any()
    assert networks.generator.training
    _assert_equal(state_tensors(networks, optimizers), before)


def test_fill_pastes_the_prediction_to_the_nearest_level() -> None:
    networks, _, settings = _setup(FULL)
    image, hidden = _batch(FULL)
    prediction, target, hole = predict(networks.generator, image, hidden, **settings)
    torch.testing.assert_close(target, image.permute(0, 3, 1, 2) / 255, atol=1e-6, rtol=0)
    assert 0 <= prediction.min()
    assert prediction.max() <= 1
    filled = fill(networks.generator, image, hidden, **settings).permute(0, 3, 1, 2) / 255
    error = torch.where(hole, filled - prediction, filled - target).abs()
    assert error.max() <= 0.5 / 255 + 1e-6


def test_a_prediction_beyond_black_or_white_is_filled_in_as_black_or_white() -> None:
    networks, _, settings = _setup(ALEXNET)
    image, hidden = _batch(ALEXNET, batch=2)
    last = networks.generator.get_submodule("decoder.up5")  # linear
    assert isinstance(last, nn.ConvTranspose2d) and last.bias is not None
    nn.init.constant_(last.bias[0], 99.0)
    nn.init.constant_(last.bias[1], -99.0)
    filled = fill(networks.generator, image, hidden, **settings)[hidden]
    assert set(filled[:, 0].tolist()) == {255}
    assert set(filled[:, 1].tolist()) == {0}


# Settings


def test_defaults_are_the_recipes_of_the_paper() -> None:
    assert default_objective(NetworkConfig()) == Objective(
        adversarial=0.001, overlap=4, ring_weight=10, region="hole", reconstruction="l2"
    )
    assert default_objective(ALEXNET) == Objective(adversarial=0, overlap=0, region="hole")
    assert default_objective(FULL) == Objective(adversarial=0.001, overlap=0, region="image")
    assert default_learning_rates(CENTER, "central", 0.001) == (2e-3, 2e-4)
    assert default_learning_rates(CENTER, "central", 0.0)[0] == 2e-4
    assert default_learning_rates(CENTER, "central", 1.0) == (2e-4, 2e-4)
    assert default_learning_rates(ALEXNET, "random_region", 0.001) == (1e-4, 1e-5)
    assert default_learning_rates(ALEXNET, "random_region", 0.0)[0] == 1e-4
    assert default_learning_rates(ALEXNET, "central", 0.0)[0] == 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversarial": -0.1}, "objective.adversarial is -0.1; it must be 0 to 1"),
        ({"overlap": 17}, "objective.overlap is 17 px; it must be 0 to 16"),
        ({"ring_weight": 0}, "objective.ring_weight is 0; it must be above 0"),
        ({"fill": (256, 0, 0)}, r"objective.fill is \(256, 0, 0\); each value must be 0 to 255"),
    ],
)
def test_an_objective_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**settings)
