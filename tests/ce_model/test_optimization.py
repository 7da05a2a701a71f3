"""How weights move: each rule against plain torch, the rate over the steps, clipping, average."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ce_model.networks import NetworkConfig
from ce_model.training import (
    Networks,
    Objective,
    Optimization,
    Optimizers,
    WeightAverage,
    load_state_tensors,
    make_optimizers,
    rate_factor,
    set_learning_rates,
    state_tensors,
    train_step,
)
from ce_model.training.muon import Muon, hidden_weights, orthogonal

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = NetworkConfig(output="full")  # for the side of its images alone
SETTINGS: dict[str, Any] = {
    "network": NETWORK,
    "objective": Objective(adversarial=0.0, overlap=0),
    "dtype": torch.float32,
}
EVERYTHING = [
    Optimization(),
    Optimization(optimizer="adamw", weight_decay=0.05, betas=(0.9, 0.95)),
    Optimization(optimizer="adam", weight_decay=0.1),
    Optimization(optimizer="sgd", weight_decay=0.1),
    Optimization(optimizer="sgd", momentum=0.0),
    Optimization(optimizer="lars", weight_decay=0.1),
    Optimization(optimizer="muon", weight_decay=0.1, momentum=0.95),
]
MATRIX = "2.weight"  # of `tiny`, neither first nor last: what muon makes orthogonal
DECAYED = {"0.weight", "2.weight", "3.weight"}


def tiny(seed: int = 0) -> Networks:
    """Three convolutions with a batch norm between them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, hidden = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        layers = first, nn.BatchNorm2d(4), hidden, nn.Conv2d(5, 3, 1)
        return Networks(nn.Sequential(*layers), None)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (1, 128, 128, 3), generator=generator, dtype=torch.uint8)
    hidden = torch.zeros(1, 128, 128, dtype=torch.bool)
    hidden[:, 30:60, 40:90] = True
    return image, hidden


def take(networks: Networks, optimizers: Optimizers, seed: int) -> dict[str, Tensor]:
    return train_step(networks, optimizers, *batch(seed), **SETTINGS)


def with_equal_singular_values(matrix: Tensor) -> Tensor:
    """Muon's polynomial, five times, of the singular values themselves."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


def reference_step(
    weights: list[nn.Parameter], names: list[str], wanted: Optimization, state: dict[str, Any]
) -> None:
    """One update at learning rate 0.01, written out with plain tensors."""
    state["step"] = state.get("step", 0) + 1
    for at, (weight, name) in enumerate(zip(weights, names, strict=True)):
        decays = name in DECAYED
        gradient = weight.grad
        assert gradient is not None
        decay = wanted.weight_decay if decays else 0.0
        mine = state.setdefault(at, [torch.zeros_like(weight), torch.zeros_like(weight)])
        with torch.no_grad():
            if wanted.optimizer in ("adamw", "muon"):
                weight -= 0.01 * decay * weight
            else:
                gradient = gradient + decay * weight
            if wanted.optimizer == "muon" and name == MATRIX:
                mine[0] = wanted.momentum * mine[0] + (1 - wanted.momentum) * gradient
                ahead = wanted.momentum * mine[0] + (1 - wanted.momentum) * gradient
                move = with_equal_singular_values(ahead.flatten(1)).view(weight.shape)
                weight -= 0.01 * 0.2 * math.sqrt(4 * 9) * move  # 5 outputs, 4 * 9 inputs
                continue
            if wanted.optimizer in ("adam", "adamw", "muon"):
                first, second = wanted.betas
                mine[0] = first * mine[0] + (1 - first) * gradient
                mine[1] = second * mine[1] + (1 - second) * gradient**2
                mean = mine[0] / (1 - first ** state["step"])
                square = mine[1] / (1 - second ** state["step"])
                weight -= 0.01 * mean / (square.sqrt() + 1e-8)
                continue
            if wanted.optimizer == "lars" and decays:
                size = weight.norm()
                plain = weight.grad
                assert plain is not None
                gradient = gradient * 0.001 * size / (plain.norm() + decay * size)
            mine[0] = wanted.momentum * mine[0] + gradient
            weight -= 0.01 * mine[0]


@pytest.mark.parametrize("wanted", EVERYTHING, ids=str)
def test_each_rule_is_its_formula_and_decays_neither_biases_nor_norms(
    wanted: Optimization,
) -> None:
    networks = tiny()
    optimizers = make_optimizers(networks, 0.01, 0.0, wanted)
    reference = copy.deepcopy(networks.generator)
    names = [name for name, _ in reference.named_parameters()]
    assert set(names) > DECAYED and len(names) == 8
    state: dict[str, Any] = {}
    for seed in range(3):
        take(networks, optimizers, seed)
        live = dict(networks.generator.named_parameters())
        if wanted.optimizer == "lars":  # it scales its gradients in place: compute them again
            fresh = Networks(reference, None)
            nothing = make_optimizers(fresh, 0.0, 0.0, Optimization(optimizer="sgd"))
            take(fresh, nothing, seed)
        else:
            for name, parameter in reference.named_parameters():
                parameter.grad = live[name].grad
        reference_step(list(reference.parameters()), names, wanted, state)
        for name, parameter in reference.named_parameters():
            torch.testing.assert_close(live[name], parameter, rtol=2e-4, atol=2e-6)


def test_muon_agrees_with_torch_on_matrices() -> None:
    """Torch computes in bfloat16, so it comes near; an update is 0.2 on average."""
    weight = nn.Parameter(torch.randn(24, 60, generator=torch.Generator().manual_seed(0)))
    mine, other = copy.deepcopy(weight), copy.deepcopy(weight)
    groups = [{"params": [mine], "orthogonal": True}]
    optimizer = Muon(groups, 0.95, lr=0.01, weight_decay=0.1)
    peer = torch.optim.Muon(
        [other], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", momentum=0.95
    )
    for seed in range(3):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1))
        mine.grad, other.grad = gradient.clone(), gradient.clone()
        before = mine.detach().clone()
        optimizer.step()
        peer.step()
        assert 0.0015 < (mine - before).square().mean().sqrt() < 0.0025
    assert (mine - other).norm() < 0.03 * (mine - weight).norm()


def test_muon_moves_hidden_layers_alone() -> None:
    """Not the first, the last, a depthwise one, biases or norms."""
    layers = (
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1),
        nn.Linear(6, 5), nn.Linear(5, 2),
    )  # fmt: skip
    assert hidden_weights(nn.Sequential(*layers)) == {"3.weight", "4.weight"}
    matrices = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.svdvals(orthogonal(matrices)).sub(1).abs().max() < 0.35
    alone = torch.cat([orthogonal(matrices[:1]), orthogonal(matrices[1:])])
    torch.testing.assert_close(orthogonal(matrices), alone)


@pytest.mark.parametrize("wanted", [*EVERYTHING, Optimization(ema=0.9, clip_norm=0.1)], ids=str)
def test_a_loaded_state_continues_bit_for_bit_with_every_rule(wanted: Optimization) -> None:
    networks, resumed = tiny(), tiny(seed=1)
    optimizers = make_optimizers(networks, 0.01, 0.0, wanted)
    others = make_optimizers(resumed, 0.01, 0.0, wanted)
    take(networks, optimizers, 0)
    load_state_tensors(resumed, others, state_tensors(networks, optimizers))
    for seed in (1, 2):
        take(networks, optimizers, seed)
        take(resumed, others, seed)
    first, second = state_tensors(networks, optimizers), state_tensors(resumed, others)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("wanted", EVERYTHING, ids=str)
def test_a_gradient_that_is_not_finite_moves_nothing_with_any_rule(wanted: Optimization) -> None:
    networks = tiny()
    optimizers = make_optimizers(networks, 0.01, 0.0, Optimization(**{**vars(wanted), "ema": 0.9}))
    take(networks, optimizers, 0)
    before = state_tensors(networks, optimizers)
    handle = next(networks.generator.parameters()).register_hook(lambda g: g * math.nan)
    assert take(networks, optimizers, 1)["nonfinite"] == 1
    handle.remove()
    after = state_tensors(networks, optimizers)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [name for name in changed if not name.endswith("num_batches_tracked")] == []
    assert take(networks, optimizers, 2)["nonfinite"] == 0


def test_a_constant_rate_is_the_same_at_every_step() -> None:
    assert {rate_factor(Optimization(), step, 9) for step in range(9)} == {1.0}


def test_a_warm_up_rises_in_a_straight_line_to_the_full_rate() -> None:
    wanted = Optimization(warmup_steps=4)
    assert [rate_factor(wanted, step, 9) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_cosine_falls_from_the_full_rate_towards_zero() -> None:
    wanted = Optimization(schedule="cosine", warmup_steps=2)
    factors = [rate_factor(wanted, step, 10) for step in range(10)]
    assert factors[2] == 1.0
    assert factors[6] == pytest.approx(0.5)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert rate_factor(wanted, 10, 10) == pytest.approx(0.0)


def test_each_milestone_takes_a_tenth() -> None:
    wanted = Optimization(schedule="step", milestones=(3, 5))
    factors = [rate_factor(wanted, step, 7) for step in range(7)]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_step_uses_the_rate_of_its_number() -> None:
    wanted = Optimization(optimizer="sgd", momentum=0.0, schedule="step", milestones=(1,))
    networks = tiny()
    optimizers = make_optimizers(networks, 0.5, 0.05, wanted)
    for step, rate in enumerate((0.5, 0.05)):
        before = [p.detach().clone() for p in networks.generator.parameters()]
        rates = set_learning_rates(optimizers, (0.5, 0.05), wanted, step, 3)
        assert rates == pytest.approx((rate, rate / 10))
        take(networks, optimizers, step)
        for old, new in zip(before, networks.generator.parameters(), strict=True):
            torch.testing.assert_close(new, old - rate * new.grad)


@pytest.mark.parametrize("largest", [1e-3, 1e6])
def test_a_clipped_gradient_keeps_its_direction_and_has_at_most_the_largest_norm(
    largest: float,
) -> None:
    found = {}
    for clip_norm in (0.0, largest):
        wanted = Optimization(optimizer="sgd", momentum=0.0, clip_norm=clip_norm)
        networks = tiny()
        metrics = take(networks, make_optimizers(networks, 0.1, 0.0, wanted), 0)
        gradients = [p.grad for p in networks.generator.parameters()]
        found[clip_norm] = torch.cat([g.flatten() for g in gradients if g is not None]), metrics
    (free, first), (clipped, second) = found.values()
    torch.testing.assert_close(first["grad_norm/generator"], second["grad_norm/generator"])
    torch.testing.assert_close(clipped.norm(), min(free.norm(), torch.tensor(largest)))
    assert torch.cosine_similarity(free, clipped, dim=0) > 0.9999


def test_the_average_is_the_weighted_sum_of_all_weights_so_far() -> None:
    network = nn.Linear(2, 2)
    average = WeightAverage(network, decay=0.5)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 1 + step
        average.update(network, torch.zeros(()))
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert average.updates == 12


def test_without_an_average_the_state_holds_none() -> None:
    networks = tiny()
    names = state_tensors(networks, make_optimizers(networks, 0.1, 0.0))
    assert not any(name.startswith("average") for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas is 1.0; it must be from 0 to below 1"),
        ({"ema": 1.0}, "ema is 1.0; it must be from 0 to below 1"),
        ({"clip_norm": math.inf}, "clip_norm is inf"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"schedule": "step", "milestones": (5, 3)}, "must be rising steps above 0"),
        ({"schedule": "step"}, "schedule step needs milestones"),
        ({"milestones": (3,)}, "schedule is constant with milestones"),
    ],
)
def test_an_optimization_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimization(**settings)
