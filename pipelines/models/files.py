"""A trained model as files: `weights.safetensors` and `model.json`; loading them runs no code."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ce_model.networks import ContextEncoder, NetworkConfig, input_side
from ce_model.training import Objective
from pipelines import storage
from pipelines.errors import UserError
from pipelines.models.backbones import build_network

FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"
MODEL = "model.json"


@dataclass(frozen=True)
class LoadedModel:
    """A context encoder with what is needed to use it."""

    generator: ContextEncoder
    network: NetworkConfig
    objective: Objective
    info: dict[str, Any]
    """Origin: strategy, steps, seed, dataset fingerprint, run id, sha256 of the weights."""

    @property
    def side(self) -> int:
        """Side of the square images the network reads, px."""
        return input_side(self.network)


def save_model(
    uri: str,
    generator: ContextEncoder,
    network: NetworkConfig,
    objective: Objective,
    info: dict[str, Any],
) -> str:
    """Write a model folder, `model.json` last; returns the sha256 of the weights."""
    tensors = {name: value.contiguous().cpu() for name, value in generator.state_dict().items()}
    with storage.staged_file(storage.join(uri, WEIGHTS)) as staged:
        write_tensors(tensors, staged)
        digest = storage.sha256_of(staged)
    description = {
        "format_version": FORMAT_VERSION,
        "network": asdict(network),
        "objective": asdict(objective),
        "info": {**info, "weights_sha256": digest},
    }
    storage.publish_json(storage.join(uri, MODEL), description)
    return digest


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file, with the rights that every new file gets.

    safetensors alone lets nobody but the owner read it, and so no server or job of another user.

    Raises:
        OSError: the disk is full, say; safetensors itself raises an error of its own.
    """
    path.touch()
    rights = path.stat().st_mode & 0o777
    try:
        safetensors.torch.save_file(tensors, path)
        path.chmod(rights)
    except safetensors.SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def load_model(uri: str) -> LoadedModel:
    """A model that `save_model` wrote, in eval mode on the CPU.

    Raises:
        UserError: not a model folder, altered files, or keys that do not fit the network.
    """
    try:
        description = storage.read_json(storage.join(uri, MODEL))
        data = storage.read_bytes(storage.join(uri, WEIGHTS))
    except FileNotFoundError:
        raise UserError(
            f"'{uri}' is not a model folder: it must hold {MODEL} and {WEIGHTS}, as "
            "jobs/pretrain.py writes them"
        ) from None
    except storage.NotJsonError:
        description = None
    if not isinstance(description, dict):
        raise UserError(
            f"{MODEL} in '{uri}' is no JSON object: it was altered or cut; take the model from its "
            "run again"
        )
    if description.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"'{uri}' has model format {description.get('format_version')}; this program reads "
            f"{FORMAT_VERSION}"
        )
    info = description["info"]
    digest = storage.sha256_of_bytes(data)
    if digest != info["weights_sha256"]:
        raise UserError(
            f"the weights in '{uri}' have sha256 {digest}, and {MODEL} says "
            f"{info['weights_sha256']}: they were altered or cut; take the model from its run again"
        )
    network = NetworkConfig(**description["network"])
    objective = Objective(
        **{**description["objective"], "fill": tuple(description["objective"]["fill"])}
    )
    generator = build_network(network, generator=torch.Generator())
    load_strictly(generator, safetensors.torch.load(data), uri)
    return LoadedModel(generator.eval(), network, objective, info)


def folder_of(uri: str) -> str:
    """The model folder that a URI names: `model` inside a pretraining stage, else itself."""
    inside = storage.join(uri, "model")
    return storage.absolute(inside if storage.exists(storage.join(inside, MODEL)) else uri)


def copy_model(source: str, target: str) -> None:
    """Copy a model folder, `model.json` last."""
    for name in (WEIGHTS, MODEL):
        storage.publish(storage.join(target, name), storage.read_bytes(storage.join(source, name)))


def load_strictly(module: torch.nn.Module, tensors: dict[str, torch.Tensor], uri: str) -> None:
    """Copy tensors into a module; every key has to fit.

    Raises:
        UserError: a key is missing, left over or of another shape.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
    ]
    if missing or unexpected or reshaped:
        raise UserError(
            f"the weights in '{uri}' do not fit the network: missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}, other shapes {reshaped[:3]}"
        )
    module.load_state_dict(tensors)
