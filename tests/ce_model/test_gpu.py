"""On a CUDA device: bf16 steps, their recording as CUDA graphs, and the feed."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from ce_model import training
from ce_model.networks import NetworkConfig, build_discriminator, build_generator, input_side
from ce_model.training import Networks, Optimizers, cuda_graph

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
LEARNING_RATES = {"alexnet": 1e-4, "inpaint": 2e-4}


def batch(side: int, seed: int, size: int = 16, device: torch.device = GPU) -> tuple[Tensor, ...]:
    """Smooth images with a square hole each; noise would leave nothing to learn."""
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 8, 8, generator=chance)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    image = smooth.mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    hidden = torch.zeros(size, side, side, dtype=torch.bool)
    hidden[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
    return image.to(device), hidden.to(device)


class Run:
    """Networks, and one way to take steps with them."""

    def __init__(
        self,
        preset: str,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device = GPU,
        *,
        plain: bool = False,
        dropout: float = 0.5,
    ) -> None:
        network, rate = NetworkConfig(), LEARNING_RATES[preset]
        if preset == "alexnet":
            network = NetworkConfig(preset="alexnet", output="full", dropout=dropout)
        self.side, self.device = input_side(network), device
        objective = training.default_objective(network)
        weights = torch.Generator().manual_seed(0)
        generator = build_generator(network, generator=weights).to(device)
        discriminator = None
        if objective.adversarial:
            discriminator = build_discriminator(network, generator=weights).to(device)
        self.networks = Networks(generator, discriminator)
        self.optimizers: Optimizers = training.make_optimizers(self.networks, rate, rate / 10)
        self.take = cuda_graph.make_step(
            self.networks, self.optimizers, device,
            network=network, objective=objective, dtype=dtype,
        )  # fmt: skip
        if plain:
            assert isinstance(self.take, cuda_graph.GraphedStep)
            self.take = self.take.plain

    def go(self, steps: int, batches: int = 4) -> list[dict[str, float]]:
        found = []
        for step in range(steps):
            torch.manual_seed(step)
            metrics = self.take(*batch(self.side, step % batches, device=self.device))
            found.append({name: float(value) for name, value in metrics.items()})
        return found

    def state(self) -> dict[str, Tensor]:
        return training.state_tensors(self.networks, self.optimizers)


def losses(found: list[dict[str, float]]) -> Tensor:
    return torch.tensor([point["loss/reconstruction"] for point in found])


@pytest.mark.parametrize("preset", LEARNING_RATES)
def test_a_step_in_bf16_on_the_gpu_follows_one_in_fp32_on_the_cpu(preset: str) -> None:
    cpu = torch.device("cpu")
    ours = losses(Run(preset, dropout=0.0).go(8))
    exact = losses(Run(preset, torch.float32, cpu, dropout=0.0).go(8))
    torch.testing.assert_close(ours, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("preset", LEARNING_RATES)
def test_both_networks_learn_in_bf16(preset: str) -> None:
    found = Run(preset).go(150, batches=1)
    assert not any(point["nonfinite"] for point in found)
    first, last = losses(found)[:5].mean(), losses(found)[-5:].mean()
    assert last < 0.5 * first


@pytest.mark.parametrize("preset", LEARNING_RATES)
def test_a_recorded_step_is_the_step(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its dropout: both draw from the same seeds."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    recorded, plain = Run(preset, torch.float32), Run(preset, torch.float32, plain=True)
    start = weights(plain)
    ours, theirs = recorded.go(6), plain.go(6)
    assert isinstance(recorded.take, cuda_graph.GraphedStep)
    torch.testing.assert_close(losses(ours), losses(theirs), rtol=0.01, atol=0)
    moved, expected = weights(recorded) - start, weights(plain) - start
    # Two networks in a game part fast: weights that differ by 1e-6 give 0.97 after six steps.
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.9
    assert moved.norm() == pytest.approx(float(expected.norm()), rel=0.05)
    steps = [v for name, v in recorded.state().items() if "generator_optimizer.step" in name]
    assert steps
    assert all(value == 6 for value in steps)


def weights(run: Run) -> Tensor:
    """Of the generator, in one row."""
    return torch.cat([p.detach().flatten().cpu() for p in run.networks.generator.parameters()])


def test_dropout_of_a_recorded_step_follows_from_the_seed() -> None:
    run = Run("alexnet", torch.float32)
    run.go(5)
    start = run.state()
    found = []
    for seed in (1, 1, 2):
        training.load_state_tensors(run.networks, run.optimizers, start)
        torch.manual_seed(seed)
        found.append(float(run.take(*batch(run.side, 0))["loss/joint"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] != pytest.approx(found[2], rel=1e-4)


@pytest.mark.parametrize("preset", LEARNING_RATES)
def test_a_recorded_step_applies_no_update_that_is_not_finite(preset: str) -> None:
    run = Run(preset)
    run.go(5)
    good = run.state()
    broken = {name: value.clone() for name, value in good.items()}
    first, _ = next(run.networks.generator.named_parameters())
    broken[f"generator.{first}"].view(-1)[0] = torch.inf
    training.load_state_tensors(run.networks, run.optimizers, broken)
    assert run.take(*batch(run.side, 0))["nonfinite"] == 1
    for name, value in run.state().items():
        # The discriminator may have taken its own step; how many batches there were, norms count.
        if name.startswith("generator") and value.is_floating_point():
            assert torch.equal(value, broken[name]), name
    training.load_state_tensors(run.networks, run.optimizers, good)
    assert run.take(*batch(run.side, 0))["nonfinite"] == 0


def test_a_recorded_step_refuses_another_shape() -> None:
    run = Run("inpaint")
    run.go(5)
    with pytest.raises(ValueError, match="give it full batches only"):
        run.take(*batch(run.side, 0, size=8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # of torch 2.11, about itself
def test_a_compiled_network_can_be_recorded() -> None:
    run, plain = Run("inpaint"), Run("inpaint", plain=True)
    for network in run.networks:
        assert network is not None
        network.compile()
    torch.testing.assert_close(losses(run.go(8)), losses(plain.go(8)), rtol=0.02, atol=0)


def test_the_feed_brings_every_batch_as_the_stream_drew_it() -> None:
    feed = pytest.importorskip("pipelines.pretrain.feed", exc_type=ImportError)
    drawn = np.random.default_rng(0)
    batches = [
        {
            "image": drawn.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8),
            "mask": drawn.integers(0, 256, (16, 128), dtype=np.uint8),
            "augment": drawn.integers(0, 16, 16, dtype=np.uint8),
        }
        for _ in range(40)
    ]
    for part in batches:
        for column in part.values():
            column.setflags(write=False)  # as those of the object store
    expected = list(feed.feed(iter(batches), torch.device("cpu")))
    found = []
    for image, hidden, _ in feed.feed(iter(batches), GPU):
        torch.cuda._sleep(10**7)  # the consumer is behind: nothing may be overwritten
        found.append((image.clone(), hidden.clone()))
    assert len(found) == len(batches)
    for (image, hidden), truth in zip(found, expected, strict=True):
        assert torch.equal(image.cpu(), truth.image)
        assert torch.equal(hidden.cpu(), truth.hidden)


def test_a_gpu_that_still_computes_is_not_idle() -> None:
    idle_module = pytest.importorskip("pipelines.pretrain.idle", exc_type=ImportError)
    idle = idle_module.Idle(GPU)
    torch.cuda._sleep(10**6)
    torch.cuda.synchronize()
    for _ in range(3):
        torch.cuda._sleep(4 * 10**8)  # a step of some 0.2 s, which runs on while we wait
        idle.begin()
        time.sleep(0.1)
        idle.end()
    torch.cuda.synchronize()
    assert idle.take() < 0.05
    idle.begin()
    time.sleep(0.1)
    idle.end()
    torch.cuda.synchronize()
    assert 0.09 < idle.take() < 0.2
