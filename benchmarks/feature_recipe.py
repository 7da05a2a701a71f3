"""What each part of the recipe `features` is worth: one setting changed at a time, equal images.

Every variant is trained outside Ray in the same way, then asked for the classes of held-out
*training* images, so that no choice is made on the images of a table: every seventh image is left
out of training and scored; the others are known. Features are max-pooled to `--values` per layer;
a ridge probe, whose penalty is chosen on a fifth of what is known, and the 20 nearest neighbours.

$ python -m benchmarks.feature_recipe --images pretrain --steps 200 --variants base pixels dense
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from ce_model import kmeans, training
from ce_model.masks import Strategy, mask_for
from ce_model.network_config import FEATURES_SIDE, NetworkConfig
from ce_model.networks import ContextEncoder, build_generator
from ce_model.training import Networks, Optimization, make_optimizers, train_step
from ce_model.transfer import initialisation
from pipelines.data import images
from pipelines.data.stream_plan import ResizedCrop
from pipelines.evaluation.data.images import ImageSet, pick_evenly, read_images
from pipelines.evaluation.results import Row
from pipelines.evaluation.settings import ProbeSettings
from pipelines.evaluation.tasks import probes
from pipelines.evaluation.tasks.probes import Split
from pipelines.pretrain.initial import KMEANS_IMAGES, KMEANS_LAYERS

HELD_OUT = 7  # every seventh image
KNOWN = 3000  # training images whose labels the probes see
BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one training is made of."""

    network: NetworkConfig
    strategy: Strategy
    area: tuple[float, float] | None
    """Of random resized crops; None: crops are not resized."""
    rule: Optimization
    """Its warm-up is a twentieth of the steps."""
    rate: float
    init: Literal["kmeans", "random"] = "kmeans"


NETWORK = NetworkConfig(preset="features", output="full")
BASE = Recipe(  # configs/recipes/features.yaml
    network=NETWORK,
    strategy=training.default_strategy("features"),
    area=(0.35, 1.0),
    rule=training.default_optimization(NETWORK, 0),
    rate=training.default_learning_rates(NETWORK, "grid_60", 0.0).generator,
)
VARIANTS = {
    "base": BASE,
    "pixels": replace(BASE, network=replace(NETWORK, target="pixels")),
    "normalized": replace(BASE, network=replace(NETWORK, target="normalized")),
    "dense": replace(BASE, network=replace(NETWORK, layers="dense")),
    "grid_40": replace(BASE, strategy="grid_40"),
    "grid_75": replace(BASE, strategy="grid_75"),
    "random_region": replace(BASE, strategy="random_region"),
    "crops not resized": replace(BASE, area=None),
    "crops from 0.2": replace(BASE, area=(0.2, 1.0)),
    "no decay": replace(BASE, rule=replace(BASE.rule, weight_decay=0.0)),
    "adamw": replace(BASE, rule=replace(BASE.rule, optimizer="adamw")),
    "random start": replace(BASE, init="random"),
    "constant rate": replace(BASE, rule=replace(BASE.rule, schedule="constant")),
    "sgd": replace(BASE, rule=Optimization(optimizer="sgd", schedule="cosine"), rate=0.1),
    "rate 3e-3": replace(BASE, rate=3e-3),
    "rate 4e-4": replace(BASE, rate=4e-4),
    # Pathak et al., section 3.3, on the same network.
    "paper": Recipe(
        network=replace(NETWORK, target="pixels", layers="dense"),
        strategy="random_region", area=None, rule=Optimization(), rate=1e-4,
        init="random",
    ),
}  # fmt: skip


def main() -> None:
    """Print a line of JSON for each variant and layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="folder with train/CLASS/...")
    parser.add_argument("--variants", nargs="+", choices=["random", *VARIANTS], default=["base"])
    parser.add_argument("--steps", type=int, default=200, help=f"of {BATCH_SIZE} images")
    parser.add_argument("--values", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    every = read_images(args.images, "train", 0)
    held = np.arange(len(every)) % HELD_OUT == 0  # of every class: they come one after another
    train, test = (every.take(np.flatnonzero(part)) for part in (~held, held))
    known = train.take(pick_evenly(len(train), KNOWN))
    for variant in args.variants:
        began = time.monotonic()
        recipe = VARIANTS.get(variant, BASE)
        draw = torch.Generator().manual_seed(args.seed)
        network = build_generator(recipe.network, generator=draw)
        loss = None
        if variant != "random":
            if recipe.init == "kmeans":
                _draw_filters(network, train, draw)
            loss = _train(network, recipe, train, args)
        scores = _measure(network, known, test, args)
        minutes = round((time.monotonic() - began) / 60, 1)
        for layer, (ridge, near) in scores.items():
            line = {"variant": variant, "layer": layer, "ridge": ridge, "neighbours": near}
            print(json.dumps(line | {"loss": loss, "minutes": minutes}), flush=True)


def _draw_filters(network: ContextEncoder, train: ImageSet, draw: torch.Generator) -> None:
    seen = train.take(pick_evenly(len(train), KMEANS_IMAGES))
    images = torch.cat(list(seen.batches(FEATURES_SIDE, BATCH_SIZE)))
    found = kmeans.first_filters(network.encoder, images, KMEANS_LAYERS, draw)
    network.encoder.load_state_dict(found, strict=False)


def _train(
    network: ContextEncoder, recipe: Recipe, train: ImageSet, args: argparse.Namespace
) -> float:
    networks = Networks(network, None)
    rule = replace(recipe.rule, warmup_steps=max(1, args.steps // 20))
    optimizers = make_optimizers(networks, recipe.rate, recipe.rate, rule)
    objective = training.default_objective(recipe.network)
    losses = []
    for step in range(args.steps):
        training.set_learning_rates(optimizers, (recipe.rate, recipe.rate), rule, step, args.steps)
        image, hidden = _batch(train, step, recipe, args.seed)
        found = train_step(
            networks, optimizers, image, hidden, network=recipe.network, objective=objective,
            dtype=torch.float32,
        )  # fmt: skip
        losses.append(float(found["loss/reconstruction"]))
    return round(float(np.mean(losses[-20:])), 4)


def _batch(train: ImageSet, step: int, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Images and masks of a step, from (seed, step) alone."""
    per_epoch = len(train) // BATCH_SIZE
    epoch, at = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(train))
    crops, masks = [], []
    for number in order[at * BATCH_SIZE : (at + 1) * BATCH_SIZE]:
        draw = np.random.default_rng([seed, epoch, int(number)])
        image = images.decode(train.encoded[number])
        down, across, area, ratio = draw.random(4)
        if recipe.area is None:
            crop = images.square(image, FEATURES_SIDE, 0, down, across)
        else:
            height, width = image.shape[:2]
            size = ResizedCrop(area=recipe.area).size(height, width, (area, ratio))
            crop = images.resized_crop(image, size, FEATURES_SIDE, down, across)
        crops.append(crop[:, ::-1] if draw.integers(2) else crop)
        masks.append(mask_for(seed, recipe.strategy, FEATURES_SIDE, str(number), epoch))
    return torch.from_numpy(np.stack(crops)), torch.from_numpy(np.stack(masks))


def _measure(
    network: ContextEncoder, known: ImageSet, test: ImageSet, args: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Accuracy of the probe and of the neighbours by layer, in %."""
    encoder = network.encoder
    initialisation.calibrate(encoder, probes.calibration(known, FEATURES_SIDE))
    encoder = initialisation.fold(encoder)
    x, queries = (
        Split(probes.extract(encoder, part, FEATURES_SIDE, args.values, torch.float32), part.labels)
        for part in (known, test)
    )
    settings = ProbeSettings(values=args.values, label_shares=(1.0,))
    linear = probes.linear(x, queries, len(known.classes), settings, args.seed).rows
    near = probes.neighbours(x, queries, settings).rows
    return {
        str(row["layer"]): (_percent(row), _percent(other))
        for row, other in zip(linear, near, strict=True)
    }


def _percent(row: Row) -> float:
    return round(100 * float(row["accuracy"] or 0), 1)


if __name__ == "__main__":
    main()
