"""This encoder with torch alone: nothing else is needed to load it or to run it.

    import encoder
    network = encoder.load()              # layers of torch.nn in eval mode, on the CPU
    x = encoder.preprocess(images)        # uint8 (N, S, S, 3), RGB -> float (N, 3, S, S)
    features = network(x)                 # what encoder.json calls "output"
    by_layer = encoder.features(network, x)

Beside it lie encoder.json (layers, sides, sha256 of every file) and encoder.safetensors (weights).
"""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
LAYERS = ("Conv2d", "Linear", "ReLU", "LeakyReLU", "MaxPool2d", "LocalResponseNorm", "Flatten")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(folder: str | Path = HERE) -> nn.Sequential:
    """The network with its weights, in eval mode and frozen; altered weights are a ValueError."""
    description = json.loads(Path(folder, "encoder.json").read_text())
    data = Path(folder, "encoder.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != description["files"]["encoder.safetensors"]:
        raise ValueError(f"encoder.safetensors in '{folder}' is not the one of encoder.json")
    network = build(description["layers"])
    network.load_state_dict(read_safetensors(data))
    return network.eval().requires_grad_(False)


def build(layers: list[dict[str, Any]]) -> nn.Sequential:
    """The layers that encoder.json describes, with weights yet to be loaded."""
    made = OrderedDict[str, nn.Module]()
    for layer in layers:
        name, kind, arguments = layer["name"], layer["kind"], layer["arguments"]
        if kind == "Sequential":
            made[name] = build(arguments["layers"])
        elif kind in LAYERS:
            made[name] = getattr(nn, kind)(**arguments)
        else:
            raise ValueError(f"layer {name} is a '{kind}'; known are {', '.join(LAYERS)}")
    return nn.Sequential(made)


def read_safetensors(data: bytes) -> dict[str, Tensor]:
    """Tensors by name: 8 bytes of length, a JSON header of that length, the values."""
    start = 8 + int.from_bytes(data[:8], "little")
    values = memoryview(bytearray(data))[start:]
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(values[begin:end], dtype=DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def preprocess(images: Tensor) -> Tensor:
    """Uint8 (N, S, S, 3), RGB, S as encoder.json says -> float (N, 3, S, S) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def features(network: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Activations by the name of their layer, each as it comes out of that layer."""
    found = {}
    for name, layer in network.named_children():
        x = found[name] = layer(x)
    return found
