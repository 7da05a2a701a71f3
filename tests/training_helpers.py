"""Training workers: one without a cluster, with its loop and deaths; one that gets a signal."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from ce_model import training
from ce_model.networks import NetworkConfig, layer_features
from ce_model.training import LearningRates, Networks, Objective, Optimization, Optimizers
from pipelines.data import stream
from pipelines.data.stream_plan import windows
from pipelines.errors import UserError
from pipelines.evaluation import encoders
from pipelines.models import checkpoint, files, resolve
from pipelines.models.files import LoadedModel
from pipelines.models.fill import fill_photograph
from pipelines.models.resolve import ModelRef
from pipelines.pretrain import device_feed, worker
from pipelines.pretrain.curves import Curves
from pipelines.pretrain.recipe import Recipe
from pipelines.pretrain.reporter import Reporter
from pipelines.pretrain.task import Task
from pipelines.pretrain.validation import FixedImages
from pipelines.pretrain.validator import Validator
from pipelines.pretrain.workers import Workers
from pipelines.runtime.ray_internals import is_training_process

ALEXNET = NetworkConfig(preset="alexnet", output="full")
PIXELS = Objective(adversarial=0.0, overlap=0)


def take_steps(
    task: Task, networks: Networks, optimizers: Optimizers
) -> Iterator[tuple[device_feed.DeviceBatch, dict[str, torch.Tensor]]]:
    """The steps of a task in this process: what each got, and what it measured."""
    recipe, plan, cpu = task.recipe, task.plan, torch.device("cpu")
    networks.generator.train()
    take = worker.cuda_graph.make_step(
        networks, optimizers, cpu,
        network=recipe.network, objective=recipe.objective, dtype=torch.float32,
    )  # fmt: skip
    seed = None if recipe.network.pretext == "inpainting" else plan.seed
    batches = (b for window in windows(plan) for b in stream.read_window(plan, window))
    for step, batch in zip(range(plan.steps), device_feed.feed(batches, cpu, seed), strict=False):
        training.set_learning_rates(
            optimizers, recipe.learning_rates, recipe.optimization, step, plan.steps
        )
        yield batch, take(*batch.given)


def check_features(networks: Networks, recipe: Recipe, folder: Path, **info: str) -> LoadedModel:
    """Save a model of preset features; evaluation reads it, and nothing takes it for a filler."""
    generator: Any = networks.generator
    files.save_model(str(folder), generator, recipe.network, recipe.objective, info)
    model = files.load_model(str(folder))
    assert model.network == recipe.network and model.side == 128
    x = torch.rand(4, 3, 128, 128) * 2 - 1
    reference = reference_of(folder)
    encoder = encoders.encoder_of(reference, 0, [x])
    assert layer_features(encoder, x)["pool5"].shape == (4, 256, 4, 4)
    with pytest.raises(UserError, match="learns features alone"):
        encoders.require_network(reference, "inpainting")
    photograph, hole = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.bool_)
    hole[20:30, 20:30] = True
    with pytest.raises(UserError, match="fills no holes"):
        fill_photograph(model, photograph, hole)
    return model


def reference_of(folder: Path) -> ModelRef:
    return resolve.trained_ref("0" * 16, str(folder))


def images(count: int, seed: int = 0) -> FixedImages:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 227, 227, 3), generator=generator, dtype=torch.uint8)
    hidden = torch.zeros(count, 227, 227, dtype=torch.bool)
    hidden[:, 60:120, 60:120] = True
    return FixedImages(image, hidden)


def make_task(steps: int, **changes: Any) -> Task:
    settings = {
        "plan": SimpleNamespace(steps=steps, batch_size=2, worker_batch=2, seed=0),
        "workers": Workers(1, 1),
        "stage_uri": "",
        "recipe": Recipe(
            strategy="random_region",
            network=ALEXNET,
            objective=PIXELS,
            learning_rates=LearningRates(1e-3, 1e-4),
            optimization=Optimization(),
            export="raw",
            shorter=0,
            crop=None,
        ),
        "precision": "fp32",
        "compile": False,
        "threads": 1,
        "checkpoint_every": 10,
        "keep_checkpoints": 1,
        "keep_best": 0,
        "has_initial": False,
        "log_every": 1,
        "validate_every": 10,
        "validation_images": 2,
        "profile_steps": 0,
        "probe_images": 2,
    }
    return Task(**{**settings, **changes})  # type: ignore[arg-type]


def make_reporter(
    posted: list[Any],
    steps: int = 100,
    typical: FixedImages | None = None,
    task: Task | None = None,
) -> Reporter:
    mailbox = SimpleNamespace(post=SimpleNamespace(remote=posted.append))
    task = task or make_task(steps)
    validator = Validator(task.recipe, torch.float32, images(2), typical)
    curves = Curves(torch.device("cpu"), training.num_ranks(), task.plan.batch_size)
    return Reporter(task, mailbox, 0, curves, validator)


@contextmanager
def signalling_a_worker(
    stage: Path, at_step: int, number: signal.Signals, rank: int = -1
) -> Iterator[list[float]]:
    """Signal one training process of this cluster as soon as a checkpoint is there; says when."""
    sent: list[float] = []
    marker = stage / "checkpoints" / f"step-{at_step:08d}" / checkpoint.STATE

    def send() -> None:
        deadline = time.monotonic() + 240
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        workers = sorted(
            process.pid
            for process in psutil.Process().children(recursive=True)
            if is_training_process(process.cmdline())
        )
        os.kill(workers[rank], number)
        sent.append(time.monotonic())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        thread.join()


def never() -> Any:
    return SimpleNamespace(is_requested=lambda *, at_point: False, enter=lambda phase: None)


def go_on(
    task: Task,
    until: int,
    stop: Any = None,
    *,
    layer: Callable[[], torch.nn.Module] = lambda: torch.nn.Dropout(0.5),
    image_of: Callable[[int], torch.Tensor] = lambda step: images(2, seed=step).image,
    posted: list[Any] | None = None,
) -> dict[str, Any]:
    """Train from the newest checkpoint to the death after a step; what the newest one then says.

    Args:
        task: what is trained.
        until: number of the first step that is not taken.
        stop: asked at each step whether to end; None never ends.
        layer: what comes after a convolution.
        image_of: the images of a step.
        posted: gets the messages.
    """
    layers = torch.nn.Conv2d(3, 3, 3, padding=1), layer()
    networks = Networks(torch.nn.Sequential(*layers), None)
    optimizers = training.make_optimizers(networks, 1e-2, 0.0, task.recipe.optimization)
    reporter = make_reporter([] if posted is None else posted, task=task)
    found = checkpoint.latest(task.stage_uri)
    if found is not None:
        training.load_state_tensors(networks, optimizers, found.tensors())
        reporter.resume(found.state)
    start = found.step if found else 0
    batches = (
        {
            "image": image_of(at).numpy(),
            "mask": np.packbits(images(2).hidden.flatten(1).numpy(), axis=1),
            "augment": np.zeros(2, np.uint8),
            "step": np.full(2, at, np.int32),
        }
        for at in range(start, until)
    )
    device = torch.device("cpu")
    worker.run_steps(
        task, networks, optimizers, batches, reporter, device, torch.float32, start, stop or never()
    )
    newest = checkpoint.latest(task.stage_uri)
    assert newest is not None
    return newest.state
