"""Images per second of our training step beside a loop in the style of the public PyTorch ports.

Both start from the same weights. The peer `ports` is fp32 eager in NCHW with the layers and the
loop of the ports (a 4x4 convolution as bottleneck, unfused Adam, a value read back for every loss);
its batch is given to it as floats with the hole already filled, while ours starts from uint8
images and masks. The peer `plain` is our own step in our precision, neither compiled nor recorded
as a CUDA graph. Rounds of the two alternate in one process; the rate of a plain matrix product,
measured between them, is the limit. On a busy machine the ratio of processor time is the steadier
one. At the end ours and `ports` train on the same batches without discriminator, and their losses
have to agree.

$ python -m benchmarks.train_step --preset inpaint --rounds 5
$ python -m benchmarks.train_step --preset alexnet --device cuda --batch-size 512 --steps 50
$ python -m benchmarks.train_step --device cuda --peer plain --steps 50 --loss-steps 0
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ce_model import training
from ce_model.masks import Strategy, mask_for
from ce_model.networks import NetworkConfig, build_discriminator, build_generator, input_side
from ce_model.training import Networks, Objective, cuda_graph

Step = Callable[[int], Tensor | float]  # index of the batch -> reconstruction loss
LOSS_TOLERANCE = 0.02
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
NUM_BATCHES = 5  # distinct batches that the loss comparison goes through


def main() -> None:
    """Compare speed and loss of the chosen presets; exit with 1 where the losses differ."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # for both
    device = torch.device(args.device)
    dtype = training.resolve_precision(args.precision, device)
    print(
        f"device {device}, {args.threads} CPU threads, ours in {dtype}, torch {torch.__version__}"
    )
    agree = [_compare(preset, device, dtype, args) for preset in args.preset]
    if not all(agree):
        sys.exit(f"the losses differ by more than {LOSS_TOLERANCE:.0%}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", nargs="+", default=["inpaint", "alexnet"])
    parser.add_argument("--peer", choices=["ports", "plain"], default="ports")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="per round and side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="ours, with torch.compile")
    parser.add_argument("--loss-steps", type=int, default=50, help="0 skips the comparison")
    parser.add_argument("--loss-batch-size", type=int, default=16)
    parser.add_argument("--loss-starts", type=int, default=2)
    return parser.parse_args()


class Setting(NamedTuple):
    """What the two sides have in common."""

    network: NetworkConfig
    objective: Objective
    strategy: Strategy
    rates: training.LearningRates


class Batch(NamedTuple):
    """Images uint8 (B, S, S, 3) and masks bool (B, S, S)."""

    image: Tensor
    hidden: Tensor


def _setting(preset: str) -> Setting:
    if preset == "alexnet":
        # Dropout would draw differently on the two sides, and the losses could not be compared.
        network = NetworkConfig(preset="alexnet", output="full", dropout=0.0)
        strategy: Strategy = "random_region"
    else:
        network, strategy = NetworkConfig(), "central"
    objective = training.default_objective(network)
    rates = training.default_learning_rates(network, strategy, objective.adversarial)
    return Setting(network, objective, strategy, rates)


def _without_discriminator(setting: Setting) -> Setting:
    """For the comparison of losses: a game between two networks parts ways from equal starts.

    Measured with the joint loss: after 50 steps two fp32 loops that differ in the order of their
    sums end up to 5.7 % apart, in bf16 up to 10 % and in either direction.
    """
    objective = replace(setting.objective, adversarial=0.0)
    rates = training.default_learning_rates(setting.network, setting.strategy, 0.0)
    return setting._replace(objective=objective, rates=rates)


def _compare(
    preset: str, device: torch.device, dtype: torch.dtype, args: argparse.Namespace
) -> bool:
    setting = _setting(preset)
    start = _networks(setting, device, seed=0)
    batches = [_batch(setting, args.batch_size, 0, device)]
    ours = _our_step(start, batches, setting, dtype, compiled=args.compile)
    if args.peer == "ports":
        peer = _peer_step(start, batches, setting)
    else:
        peer = _our_step(start, batches, setting, dtype, recorded=False)
    _alternate(ours, peer, device, steps=cuda_graph.WARM_UP_STEPS + 1, rounds=1)
    rounds = _alternate(ours, peer, device, args.steps, args.rounds)
    del ours, peer
    gflop = _gflop_per_image(start, batches[0], setting)
    _print_speeds(preset, rounds, gflop, args, dtype)
    return not args.loss_steps or _same_loss(_without_discriminator(setting), dtype, device, args)


class Round(NamedTuple):
    """Seconds per step by the clock and of processor time; matrix products in TFLOP/s."""

    ours: float
    peer: float
    ours_cpu: float
    peer_cpu: float
    bf16: float
    fp32: float


def _alternate(
    ours: Step, peer: Step, device: torch.device, steps: int, rounds: int
) -> list[Round]:
    result = []
    for _ in range(rounds):
        clock, cpu = _seconds(ours, steps, device)
        peer_clock, peer_cpu = _seconds(peer, steps, device)
        limits = [_matmul_tflops(device, dtype) for dtype in (torch.bfloat16, torch.float32)]
        result.append(Round(clock, peer_clock, cpu, peer_cpu, *limits))
    return result


def _seconds(step: Step, steps: int, device: torch.device) -> tuple[float, float]:
    wait_for(device)
    clock, cpu = time.perf_counter(), time.process_time()
    for index in range(steps):
        step(index)
    wait_for(device)
    return (time.perf_counter() - clock) / steps, (time.process_time() - cpu) / steps


def _matmul_tflops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    side = MATMUL_SIDE[device.type]
    a = torch.randn(side, side, device=device).to(dtype)
    a @ a
    wait_for(device)
    started = time.perf_counter()
    for _ in range(repeats):
        a @ a
    wait_for(device)
    return repeats * 2 * side**3 / (time.perf_counter() - started) / 1e12


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print_speeds(
    preset: str,
    rounds: list[Round],
    gflop: float,
    args: argparse.Namespace,
    dtype: torch.dtype,
) -> None:
    ours, peer, ours_cpu, peer_cpu, bf16, fp32 = np.array(rounds).T
    limit = bf16 if dtype == torch.bfloat16 else fp32
    achieved = gflop * args.batch_size / ours / 1e3
    print(
        f"{preset}: ours {_spread(args.batch_size / ours)} images/s, "
        f"peer {_spread(args.batch_size / peer)} images/s, ratio {_spread(peer / ours)}\n"
        f"  batch {args.batch_size}, {len(rounds)} rounds of {args.steps} steps; "
        f"{gflop:.2f} GFLOP per image; "
        f"ratio of processor time {_spread(peer_cpu / ours_cpu)}\n"
        f"  matrix product {_spread(bf16)} TFLOP/s bf16, {_spread(fp32)} fp32; "
        f"our step reaches {_spread(achieved / limit)} of it"
    )


def _spread(values: np.ndarray) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _gflop_per_image(start: Networks, batch: Batch, setting: Setting) -> float:
    """Multiplications and additions of one of our steps."""
    step = _our_step(start, [Batch(batch.image[:2], batch.hidden[:2])], setting, torch.float32)
    with FlopCounterMode(display=False) as counter:
        step(0)
    return float(counter.get_total_flops()) / 2 / 1e9


def _same_loss(
    setting: Setting, dtype: torch.dtype, device: torch.device, args: argparse.Namespace
) -> bool:
    """Whether the reconstruction losses end within the tolerance, in the mean over the starts."""
    pairs = [_losses(setting, dtype, device, args, seed) for seed in range(args.loss_starts)]
    first, second = np.mean(pairs, axis=0)
    difference = abs(first / second - 1)
    each = ", ".join(f"{ours / peer - 1:+.2%}" for ours, peer in pairs)
    print(
        f"  reconstruction loss after {args.loss_steps} steps of {args.loss_batch_size} images: "
        f"ours {first:.4f}, peer {second:.4f}, difference {difference:.2%} "
        f"(mean of the last {NUM_BATCHES} steps and of {args.loss_starts} starts: {each})"
    )
    return bool(difference <= LOSS_TOLERANCE)


def _losses(
    setting: Setting, dtype: torch.dtype, device: torch.device, args: argparse.Namespace, seed: int
) -> tuple[float, float]:
    """Ours and the peer's, from one start on the same batches."""
    start = _networks(setting, device, seed)
    seeds = range(seed * NUM_BATCHES, (seed + 1) * NUM_BATCHES)
    batches = [_batch(setting, args.loss_batch_size, number, device) for number in seeds]
    ours = _our_step(start, batches, setting, dtype, compiled=args.compile)
    peer = _peer_step(start, batches, setting)
    history = [(float(ours(index)), float(peer(index))) for index in range(args.loss_steps)]
    first, second = np.mean(history[-NUM_BATCHES:], axis=0)
    return float(first), float(second)


def _networks(setting: Setting, device: torch.device, seed: int) -> Networks:
    chance = torch.Generator().manual_seed(seed)
    generator = build_generator(setting.network, generator=chance).to(device)
    if not setting.objective.adversarial:
        return Networks(generator, None)
    return Networks(generator, build_discriminator(setting.network, generator=chance).to(device))


def _batch(setting: Setting, size: int, seed: int, device: torch.device) -> Batch:
    """Smooth random images: noise would leave nothing to learn."""
    side = input_side(setting.network)
    coarse = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    image = smooth.mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    masks = [mask_for(seed, setting.strategy, side, str(index), 0) for index in range(size)]
    return Batch(image.to(device), torch.from_numpy(np.stack(masks)).to(device))


def _our_step(
    start: Networks,
    batches: list[Batch],
    setting: Setting,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    recorded: bool = True,
) -> Step:
    networks = copy.deepcopy(start)
    optimizers = training.make_optimizers(networks, *setting.rates)
    for network in networks:
        if compiled and network is not None:
            network.compile()
    take = cuda_graph.make_step(
        networks,
        optimizers,
        batches[0].image.device,
        network=setting.network,
        objective=setting.objective,
        dtype=dtype,
    )
    if not recorded and isinstance(take, cuda_graph.GraphedStep):
        take = take.plain

    def step(index: int) -> Tensor:
        return take(*batches[index % len(batches)])["loss/reconstruction"]

    return step


def _peer_step(start: Networks, batches: list[Batch], setting: Setting) -> Step:
    """The loop of the ports: BCE on sigmoids, backward per term, and `.item()` on every loss."""
    generator = _port(start.generator, setting.network)
    optimizer = torch.optim.Adam(generator.parameters(), setting.rates.generator, (0.5, 0.999))
    views = [
        training.make_views(*batch, setting.network, setting.objective)._asdict()
        for batch in batches
    ]
    views = [{n: v.contiguous() for n, v in view.items() if v is not None} for view in views]
    share = setting.objective.adversarial

    def reconstruction_step(index: int) -> float:
        view = views[index % len(views)]
        optimizer.zero_grad()
        loss = _weighted_l2(generator(view["context"]), view)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    if start.discriminator is None:
        return reconstruction_step

    discriminator = nn.Sequential(_contiguous(start.discriminator), nn.Sigmoid())
    optimizer_d = torch.optim.Adam(
        discriminator.parameters(), setting.rates.discriminator, (0.5, 0.999)
    )
    bce = nn.BCELoss()

    def joint_step(index: int) -> float:
        view = views[index % len(views)]
        ones = torch.ones(len(view["target"]), device=view["target"].device)
        optimizer_d.zero_grad()
        real_loss = bce(discriminator(view["target"]), ones)
        real_loss.backward()
        fake = generator(view["context"])
        fake_loss = bce(discriminator(fake.detach()), torch.zeros_like(ones))
        fake_loss.backward()
        optimizer_d.step()
        optimizer.zero_grad()
        adversarial = bce(discriminator(fake), ones)
        reconstruction = _weighted_l2(fake, view)
        joint = (1 - share) * reconstruction + share * adversarial
        joint.backward()
        optimizer.step()
        for loss in (real_loss, fake_loss, adversarial, joint):
            loss.item()
        return reconstruction.item()

    return joint_step


def _weighted_l2(prediction: Tensor, view: dict[str, Tensor]) -> Tensor:
    error = view["weight"] * (prediction - view["target"]) ** 2
    return error.sum() / (3 * (view["weight"] > 0).sum())


def _port(generator: nn.Module, network: NetworkConfig) -> nn.Module:
    """The same function from the same weights, in the layers that the ports use."""
    port = _contiguous(generator)
    if network.preset == "alexnet":
        # the author's recipe: a grouped convolution over the whole map, then a view
        weight = port.get_parameter("decoder.channelwise.0.weight").detach()
        channels, size, _ = weight.shape
        grouped = nn.Conv2d(channels, channels * size, 6, groups=channels, bias=False)
        grouped.weight.data = weight.transpose(1, 2).reshape(channels * size, 1, 6, 6)
        recipe = nn.Sequential(grouped, nn.Flatten(), nn.Unflatten(1, (channels, 6, 6)))
        port.set_submodule("decoder.channelwise.0", recipe)
        return port
    bottleneck = network.bottleneck
    weight = port.get_parameter("encoder.e6.1.weight").detach()
    narrow = nn.Conv2d(512, bottleneck, 4, bias=False)
    narrow.weight.data = weight.reshape(narrow.weight.shape)
    norm = nn.BatchNorm2d(bottleneck).to(weight.device)
    norm.load_state_dict(port.get_submodule("encoder.e6.2").state_dict())
    port.set_submodule("encoder.e6", nn.Sequential(narrow, norm, nn.LeakyReLU(0.2, inplace=True)))
    weight = port.get_parameter("decoder.d1.0.weight").detach()
    wide = nn.ConvTranspose2d(bottleneck, 512, 4, bias=False)
    wide.weight.data = weight.T.reshape(wide.weight.shape)
    layers = nn.Sequential(wide, port.get_submodule("decoder.d1.2"), nn.ReLU(inplace=True))
    port.set_submodule("decoder.d1", layers)
    return port


def _contiguous(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


if __name__ == "__main__":
    main()
