"""Rows of the paper's second table that are trained, but not as context encoders.

`autoencoder` is the same network with no hole, scored on the whole image; `supervised` is the
same encoder trained with the labels. Both read exactly the batches that pretraining with the same
dataset, seed, batch size and steps reads, and end as model folders like any other.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ce_model import training
from ce_model.networks import NetworkConfig, input_side
from ce_model.pixels import network_input
from ce_model.training import Networks, Objective
from pipelines import storage
from pipelines.data import stream, stream_plan
from pipelines.data.manifest import read_manifest
from pipelines.data.stream_plan import StreamPlan
from pipelines.errors import UserError
from pipelines.evaluation import encoders
from pipelines.evaluation.settings import BaselineSettings
from pipelines.models import files
from pipelines.models.backbones import build_network

STEPS_AT_ONCE = 10  # between two words to whoever shows the progress
VERSION = 2  # part of every key: raise it when the same settings train differently
Kind = Literal["autoencoder", "supervised"]
Batch = dict[str, NDArray[Any]]


def train(
    kind: Kind,
    network: NetworkConfig,
    dataset_uri: str,
    settings: BaselineSettings,
    seed: int,
    dtype: torch.dtype,
    output_uri: str,
    done: Callable[[int], None] = lambda steps: None,
) -> str:
    """Train a baseline and write its model folder; returns the sha256 of the weights.

    `done` gets, now and then, the number of steps since the last call.
    """
    manifest = read_manifest(dataset_uri)
    plan = StreamPlan(
        uri=storage.absolute(dataset_uri),
        manifest=manifest,
        strategy="central",
        side=input_side(network),
        shorter=settings.shorter,
        batch_size=settings.batch_size,
        num_workers=1,
        steps=settings.steps,
        seed=seed,
    )
    fill = manifest.mean_rgb
    objective = Objective(adversarial=0.0, overlap=0, region="image", fill=fill)
    place = encoders.device()
    generator = build_network(network, generator=torch.Generator().manual_seed(seed)).to(place)
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        if kind == "autoencoder":
            _reconstruct(generator, plan, objective, network, settings, dtype, done)
        else:
            classes = len(manifest.classes)
            _classify(generator.encoder, plan, classes, settings, dtype, done)
    info = {
        "strategy": kind,
        "steps": settings.steps,
        "seed": seed,
        "dataset_fingerprint": manifest.fingerprint,
    }
    return files.save_model(output_uri, generator.eval(), network, objective, info)


def _reconstruct(
    generator: nn.Module,
    plan: StreamPlan,
    objective: Objective,
    network: NetworkConfig,
    settings: BaselineSettings,
    dtype: torch.dtype,
    done: Callable[[int], None],
) -> None:
    networks = Networks(generator.train(), None)
    optimizers = training.make_optimizers(networks, settings.learning_rate, 0.0)
    place = next(generator.parameters()).device
    typical: list[Tensor] = []
    for batch in _counted(batches(plan), done):
        image = _image(batch)
        if len(typical) * settings.batch_size < training.STATISTICS_IMAGES:
            typical.append(image)
        training.train_step(
            networks, optimizers, image.to(place), _nothing_hidden(image).to(place),
            network=network, objective=objective, dtype=dtype,
        )  # fmt: skip
    if training.dropout_shifts_statistics(generator):
        image = torch.cat(typical)[: training.STATISTICS_IMAGES]
        training.estimate_statistics(
            generator, image.to(place), _nothing_hidden(image).to(place),
            network=network, objective=objective, dtype=dtype,
        )  # fmt: skip


def _nothing_hidden(image: Tensor) -> Tensor:
    return torch.zeros(image.shape[:3], dtype=torch.bool)


def _classify(
    encoder: nn.Module,
    plan: StreamPlan,
    classes: int,
    settings: BaselineSettings,
    dtype: torch.dtype,
    done: Callable[[int], None],
) -> None:
    if classes < 2:
        raise UserError(
            f"model 'supervised' needs labels; '{plan.uri}' has {classes} classes: prepare it from "
            "class folders (train/<class>/)"
        )
    place = next(encoder.parameters()).device
    with torch.no_grad():
        features = encoder.eval()(torch.zeros(1, 3, plan.side, plan.side, device=place))
    head = nn.Linear(features.flatten(1).shape[1], classes).to(place)
    parameters = [*encoder.train().parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(
        parameters, settings.learning_rate, betas=training.ADAM_BETAS, fused=True
    )
    for batch in _counted(batches(plan), done):
        x = network_input(_image(batch).to(place))
        labels = torch.from_numpy(batch["label"].astype(np.int64)).to(place)
        with torch.autocast(place.type, dtype, dtype != torch.float32):
            logits = head(F.dropout(encoder(x).flatten(1), 0.5))
        loss = F.cross_entropy(logits.float(), labels)
        if not bool(loss.isfinite()):
            raise UserError(
                f"training of 'supervised' diverged; baseline.learning_rate is "
                f"{settings.learning_rate}: lower it"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _counted(read: Iterator[Batch], done: Callable[[int], None]) -> Iterator[Batch]:
    """The batches, each counted when the next one is requested."""
    made = 0
    for batch in read:
        yield batch
        made += 1
        if made == STEPS_AT_ONCE:
            done(made)
            made = 0
    done(made)


def batches(plan: StreamPlan) -> Iterator[Batch]:
    """The batches of pretraining, read here instead of in a Ray Data execution."""
    for window in stream_plan.windows(plan):
        yield from stream.read_window(plan, window)


def _image(batch: Batch) -> Tensor:
    image = torch.from_numpy(batch["image"])
    flip = torch.from_numpy(batch["augment"] >= stream.FLIP).view(-1, 1, 1, 1)
    return torch.where(flip, image.flip(2), image)
