"""Weights to start from: any model of ours, a file, or filters drawn from training images.

Only the generator starts from them; a discriminator and the optimizer's state begin anew.
"""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ce_model import kmeans
from ce_model.network_config import ALEXNET, NetworkConfig
from ce_model.pixels import network_input
from pipelines import storage
from pipelines.data import stream
from pipelines.data.stream_plan import StreamPlan
from pipelines.errors import UserError
from pipelines.models import backbones, files
from pipelines.models.backbones import build_network

STATE_DICTS = (".safetensors", ".pt", ".pth", ".bin")
FILE = "init.safetensors"
KMEANS_IMAGES = 256
KMEANS_LAYERS = 2  # of alexnet: with filters of all five, deeper layers learn less
SHOWN = 4  # names of each kind in the report


@dataclass(frozen=True)
class InitialWeights:
    """What `--init` and `--init-map` name."""

    uri: str
    """A file, a model folder, or hf: and a folder of transformers."""
    digest: str
    """sha256 of the weights."""
    renames: tuple[tuple[str, str], ...]
    """Prefixes of names and what stands in their place."""

    @property
    def in_key(self) -> list[Any]:
        """What of it is part of the key of a training."""
        return [self.digest, *map(list, self.renames)]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors under their new names, on the CPU; loading runs no code.

        Raises:
            UserError: the file holds no state dict, or two tensors get one name.
        """
        if self.uri.startswith(backbones.FOLDER):
            found = backbones.read_folder(self.uri.removeprefix(backbones.FOLDER))
        else:
            found = _read(self.uri) if _is_file(self.uri) else _of_model(self.uri)
        renamed: dict[str, Tensor] = {}
        for name, tensor in found.items():
            new = _rename(name, self.renames)
            if new in renamed:
                raise UserError(f"init_map gives two tensors of '{self.uri}' the name '{new}'")
            renamed[new] = tensor
        return renamed


def find_initial(
    ref: str, renames: tuple[str, ...], *, store: str, tracking_uri: str
) -> InitialWeights:
    """What a reference names.

    Args:
        ref: model folder, stage, checkpoint, run id, models:/name@alias, or a file of a state
            dict (.safetensors, .pt, .pth, .bin), or hf: and a folder of transformers.
        renames: OLD=NEW, each a prefix of names; the first that fits a name replaces it.
        store: where registered models are kept.
        tracking_uri: MLflow server.

    Raises:
        UserError: there is none, or a rename is no OLD=NEW.
    """
    pairs = []
    for rename in renames:
        old, equals, new = rename.partition("=")
        if not equals:
            raise UserError(
                f"init_map has '{rename}'; each must be OLD=NEW, two prefixes of names, for "
                "example module.=encoder."
            )
        pairs.append((old, new))
    if ref.startswith(backbones.FOLDER):
        folder = str(Path(ref.removeprefix(backbones.FOLDER)).absolute())
        digest = backbones.digest_of_folder(folder)
        return InitialWeights(backbones.FOLDER + folder, digest, tuple(pairs))
    if _is_file(ref):
        uri = storage.absolute(ref)
        if not storage.exists(uri):
            raise UserError(f"init is '{ref}', where there is no file")
        return InitialWeights(uri, storage.sha256_of_bytes(storage.read_bytes(uri)), tuple(pairs))
    # Here, since MLflow costs every process of a training some seconds, and the driver alone asks.
    from pipelines.models.resolve import resolve_model

    found = resolve_model(ref, store=store, tracking_uri=tracking_uri)
    return InitialWeights(found.uri, found.sha256, tuple(pairs))


def write_initial(weights: InitialWeights, network: NetworkConfig, stage: str) -> str:
    """Put what fits a network where every worker can read it; returns the report, one line.

    Raises:
        UserError: nothing fits.
    """
    own = build_network(network, generator=torch.Generator()).state_dict()
    given = weights.tensors()
    shared = own.keys() & given.keys()
    fitting = {name: given[name] for name in shared if given[name].shape == own[name].shape}
    missing, unexpected = sorted(own.keys() - given), sorted(given.keys() - own)
    reshaped = [
        f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(shared - fitting.keys())
    ]
    report = (
        f"initial weights '{weights.uri}': {len(fitting)} of {len(own)} tensors loaded"
        f"{_some('missing, so drawn anew', missing)}{_some('unexpected, so ignored', unexpected)}"
        f"{_some('of another shape, so drawn anew', reshaped)}{_note(weights.uri)}"
    )
    if not any(name.endswith("weight") for name in fitting):
        raise UserError(f"{report}. Nothing fits: rename with --init-map OLD=NEW, or drop --init")
    _write({name: tensor.to(own[name].dtype) for name, tensor in fitting.items()}, stage)
    return report


def write_kmeans(plan: StreamPlan, network: NetworkConfig, stage: str) -> str:
    """Put filters for the first convolutions where every worker can read them; returns a line.

    The seed of the training draws them, from the first training images.
    """
    pixels, _ = stream.read_fixed_images(plan, "train", KMEANS_IMAGES)
    images = network_input(torch.from_numpy(pixels))
    draw = torch.Generator().manual_seed(plan.seed)
    encoder = build_network(network, generator=draw).encoder
    layers = KMEANS_LAYERS if network.encoder == ALEXNET else 1
    found = kmeans.first_filters(encoder, images, layers, draw)
    _write({f"encoder.{name}": weight for name, weight in found.items()}, stage)
    names = " and ".join(name.removesuffix(".weight") for name in found)
    return f"initial filters of {names}: k-means of patches of {len(images)} training images"


def _write(tensors: dict[str, Tensor], stage: str) -> None:
    with storage.staged_file(storage.join(stage, FILE)) as staged:
        files.write_tensors({name: each.contiguous() for name, each in tensors.items()}, staged)


def read_initial(stage: str) -> dict[str, Tensor]:
    """What `write_initial` or `write_kmeans` put there."""
    return safetensors.torch.load(storage.read_bytes(storage.join(stage, FILE)))


def _note(uri: str) -> str:
    folder = uri.removeprefix(backbones.FOLDER)
    return "" if folder == uri else backbones.note_of_folder(folder)


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > SHOWN else ""
    return f"; {len(names)} {what} ({', '.join(names[:SHOWN])}{more})"


def _rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for old, new in renames:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _is_file(ref: str) -> bool:
    return PurePosixPath(ref).suffix in STATE_DICTS


def _of_model(uri: str) -> dict[str, Tensor]:
    return dict(files.load_model(uri).generator.state_dict())


def _read(uri: str) -> dict[str, Tensor]:
    problem = "holds no plain state dict of tensors; save one with torch.save(model.state_dict())"
    if uri.endswith(".safetensors"):
        try:
            return dict(safetensors.torch.load(storage.read_bytes(uri)))
        except safetensors.SafetensorError as error:
            raise UserError(f"init is '{uri}', which is no safetensors file: {error}") from None
    data = io.BytesIO(storage.read_bytes(uri))
    try:
        found = torch.load(data, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"init is '{uri}', which {problem} ({type(error).__name__})") from None
    for inner in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(inner), dict):
            found = found[inner]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"init is '{uri}', which {problem}")
    return found
