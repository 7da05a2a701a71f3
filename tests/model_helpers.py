"""Small models for the tests."""

from pathlib import Path

import torch

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import default_objective
from pipelines.models import files

SMALL = NetworkConfig(preset="inpaint", bottleneck=8)


def save_small_model(folder: Path, seed: int = 0, **more: str) -> str:
    generator = build_generator(SMALL, generator=torch.Generator().manual_seed(seed))
    info = {"strategy": "central", "steps": 0, "seed": seed, **more}
    files.save_model(str(folder), generator, SMALL, default_objective(SMALL), info)
    return str(folder)
