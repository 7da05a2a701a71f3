"""How well preset `unet` fills photographs after a given time, beside methods without training.

Trains on folders of images for `--minutes` with random crops and flips, half of the holes central,
half free-form; the learning rate follows a cosine over the time. Then measures the hole of the
central 56 and 64 px and of free-form masks on validation images, and the centres on images of
another kind. Telea, Navier-Stokes and the smooth start are measured on the same pixels. An
interrupted run resumes from `--checkpoint`.

$ python -m benchmarks.filling --train data/pretrain_A/train data/pretrain_B/train \
      --validation data/pretrain_A/val --unseen data/paper_samples/paris --minutes 25
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ce_model import training
from ce_model.hole_metrics import hole_errors, ssim
from ce_model.mask_tensors import shrink
from ce_model.masks import central, mask_for
from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import (
    Networks,
    default_objective,
    default_optimization,
    make_optimizers,
    train_step,
)
from ce_model.training.optimizers import set_learning_rate
from ce_model.training.precision import resolve_precision
from pipelines.data.classical_fill import navier_stokes, telea

SIDE = 128
UNET = NetworkConfig(preset="unet", output="full", antialias=True)
OBJECTIVE = default_objective(UNET)
WARM_UP_IMAGES = 800
Images = NDArray[np.uint8]
Masks = NDArray[np.bool_]


def main() -> None:
    """Train, then print one line per kind of hole and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", nargs="+", required=True, help="folders of images")
    parser.add_argument("--validation", required=True, help="folder of images")
    parser.add_argument("--unseen", help="folder of images of another kind")
    parser.add_argument("--images", type=int, default=200, help="validation images, evenly taken")
    parser.add_argument("--minutes", type=float, default=25.0, help="of training")
    parser.add_argument("--steps", type=int, help="of training, instead of --minutes")
    parser.add_argument("--loss", choices=["l1", "l2"], default="l1")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--checkpoint", type=Path, help="file to resume from and to save to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    names = sorted(path for folder in args.train for path in Path(folder).rglob("*.jpg"))
    generator, images, seconds = _train(names, args)
    print(
        f"trained on {images:,} images of {len(names):,} in {seconds / 60:.1f} minutes", flush=True
    )
    kinds = {"validation": (args.validation, args.images), "unseen": (args.unseen, 0)}
    for name, (folder, count) in kinds.items():
        if folder:
            _report(name, _squares(Path(folder), count), generator)


def _train(names: list[Path], args: argparse.Namespace) -> tuple[torch.nn.Module, int, float]:
    networks = Networks(
        build_generator(UNET, generator=torch.Generator().manual_seed(args.seed)), None
    )
    rule = default_optimization(UNET, 0)
    optimizers = make_optimizers(networks, args.learning_rate, args.learning_rate, rule)
    dtype = resolve_precision(args.precision, "cpu")
    step, spent, losses = 0, 0.0, []
    if args.checkpoint and args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        training.load_state_tensors(networks, optimizers, saved["tensors"])
        step, spent = saved["step"], saved["spent"]
    began, saved_at = time.monotonic() - spent, time.monotonic()
    objective = replace(OBJECTIVE, reconstruction=args.loss)
    while True:
        spent = time.monotonic() - began
        done = step / args.steps if args.steps else spent / (60 * args.minutes)
        if done >= 1:
            break
        rate = args.learning_rate * min(1, (step + 1) * args.batch_size / WARM_UP_IMAGES)
        set_learning_rate(optimizers.generator, rate * (1 + math.cos(math.pi * done)) / 2)
        image, hidden = _batch(names, step, args)
        metrics = train_step(
            networks, optimizers, image, hidden, network=UNET, objective=objective, dtype=dtype
        )
        losses.append(float(metrics["loss/reconstruction"]))
        step += 1
        if step % 50 == 0:
            rate = step * args.batch_size / spent
            print(f"step {step}: loss {np.mean(losses[-50:]):.4f}, {rate:.1f} images/s", flush=True)
        if args.checkpoint and time.monotonic() - saved_at > 60:
            saved_at = time.monotonic()
            tensors = training.state_tensors(networks, optimizers)
            torch.save({"tensors": tensors, "step": step, "spent": spent}, args.checkpoint)
    if args.checkpoint:
        tensors = training.state_tensors(networks, optimizers)
        torch.save({"tensors": tensors, "step": step, "spent": spent}, args.checkpoint)
    return networks.generator, step * args.batch_size, spent


def _batch(names: list[Path], step: int, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Images and masks of a step, from (seed, step) alone."""
    epoch, first = divmod(step * args.batch_size, len(names) // args.batch_size * args.batch_size)
    order = np.random.default_rng([args.seed, epoch]).permutation(len(names))
    images, masks = [], []
    for number in order[first : first + args.batch_size]:
        draw = np.random.default_rng([args.seed, epoch, int(number)])
        image = _read(names[number])
        shorter = int(draw.integers(SIDE, min(image.shape[:2]) + 1))
        image = _shrink(image, shorter)
        top, left = (int(draw.integers(size - SIDE + 1)) for size in image.shape[:2])
        crop = image[top : top + SIDE, left : left + SIDE]
        images.append(crop[:, ::-1] if draw.integers(2) else crop)
        if draw.integers(2):
            hole = mask_for(args.seed, "free_form", SIDE, str(number), epoch)
        else:
            hole = _centre(int(draw.choice([56, 64])))
        masks.append(hole)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def _centre(side: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    start = (SIDE - side) // 2
    mask[start : start + side, start : start + side] = True
    return mask


def _read(path: Path) -> Images:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None, path
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _shrink(image: Images, shorter: int) -> Images:
    """Resize the shorter side."""
    scale = shorter / min(image.shape[:2])
    height, width = (max(shorter, round(size * scale)) for size in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _squares(folder: Path, count: int) -> Images:
    """The centres of some images: uint8 (N, SIDE, SIDE, 3)."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))
    chosen = paths if not count else [paths[i * len(paths) // count] for i in range(count)]
    squares = []
    for path in chosen:
        image = _shrink(_read(path), SIDE)
        top, left = ((size - SIDE) // 2 for size in image.shape[:2])
        squares.append(image[top : top + SIDE, left : left + SIDE])
    return np.stack(squares)


def _report(name: str, images: Images, generator: torch.nn.Module) -> None:
    count = len(images)
    holes = {
        "centre 56": np.repeat(shrink(torch.from_numpy(central(SIDE))[None], 4).numpy(), count, 0),
        "centre 64": np.repeat(central(SIDE)[None], count, 0),
        "free-form": np.stack([mask_for(1, "free_form", SIDE, str(i), 0) for i in range(count)]),
    }
    for kind, hole in holes.items():
        for method, filled in _fillings(images, hole, generator):
            scores = {k: round(v, 4) for k, v in _scores(filled, images, hole).items()}
            print(
                json.dumps({"on": name, "hole": kind, "images": count, "method": method} | scores)
            )


def _fillings(
    images: Images, hole: Masks, generator: torch.nn.Module
) -> Iterator[tuple[str, Images]]:
    for name, method in (("Telea", telea), ("Navier-Stokes", navier_stokes)):
        yield name, np.stack([method(*each) for each in zip(images, hole, strict=True)])
    for name, network in (("smooth start", build_generator(UNET)), ("unet", generator)):
        parts = [
            training.fill(
                network, torch.from_numpy(images[at : at + 50]),
                torch.from_numpy(hole[at : at + 50]),
                network=UNET, objective=OBJECTIVE, dtype=torch.float32,
            ).numpy()
            for at in range(0, len(images), 50)
        ]  # fmt: skip
        yield name, np.concatenate(parts)


def _scores(filled: Images, images: Images, hole: Masks) -> dict[str, float]:
    prediction, target = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (filled, images))
    where = torch.from_numpy(hole)[:, None]
    errors = hole_errors(prediction, target, where)
    return {
        "psnr": float(errors.psnr.mean()),
        "l1": float(errors.l1.mean()),
        "ssim": float(ssim(prediction, target, where).mean()),
    }


if __name__ == "__main__":
    main()
