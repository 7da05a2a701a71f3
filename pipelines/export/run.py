"""The encoder alone, for use without this project: safetensors, ONNX and torch.export.

    encoder.safetensors   weights with batch norm folded into the layers before it
    encoder.py            loads them with torch alone: `standalone.py` of this package, as it is
    encoder.onnx          image float (N, 3, S, S), RGB in [-1, 1] -> features; any N
    encoder.pt2           the same as a torch.export program
    README.md             the model card
    encoder.json          network, layers, sizes and sha256 of each file; written last

A backbone of transformers is written so that `AutoModel.from_pretrained(FOLDER)` loads it: instead
of encoder.safetensors and encoder.py there are model.safetensors, config.json and
preprocessor_config.json, and batch norm stays.

Every form is compared with the original, batch norm and all, before anything is published.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ce_model.hierarchy import Backbone
from ce_model.networks import NetworkConfig
from ce_model.transfer.initialisation import fold
from pipelines import storage
from pipelines.errors import UserError
from pipelines.export import standalone
from pipelines.export.config import ExportConfig
from pipelines.export.layers import UndescribedLayerError, describe_layers
from pipelines.export.model_card import model_card
from pipelines.models import backbones, files
from pipelines.models.backbones import build_network
from pipelines.models.resolve import resolve_model
from pipelines.runtime.progress import plain_console
from pipelines.tracking import client

FORMAT_VERSION = 1
TOLERANCE = 1e-4  # absolute and relative
CHECKED_IMAGES = 3
WEIGHTS, BACKBONE_WEIGHTS, ONNX, PROGRAM, SCRIPT, CARD, DESCRIPTION = (
    "encoder.safetensors",
    "model.safetensors",
    "encoder.onnx",
    "encoder.pt2",
    "encoder.py",
    "README.md",
    "encoder.json",
)

Features = NDArray[np.float32]


def export_encoder(config: ExportConfig) -> dict[str, Any]:
    """Fold, write, compare, publish; returns the description."""
    console = plain_console(soft_wrap=True)
    output = storage.absolute(config.output)
    storage.filesystem(output)  # refuses what names no bucket
    done = storage.join(output, DESCRIPTION)
    if storage.exists(done):
        raise UserError(f"output is '{config.output}', which holds an export already; name another")
    uri = client.tracking_uri(config.tracking_uri, config.store)
    subject = resolve_model(config.model, store=config.store, tracking_uri=uri)
    model = files.load_model(subject.uri)
    encoder = fold_encoder(model.generator.encoder)
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(CHECKED_IMAGES, 3, model.side, model.side, generator=noise) * 2 - 1
    with torch.inference_mode():
        expected = model.generator.encoder(x).numpy()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        errors, others = _write(encoder, folder, x, expected)
        description: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "network": asdict(model.network),
            "side": model.side,
            "input": f"float32 (N, 3, {model.side}, {model.side}), RGB, pixel / 127.5 - 1",
            "output": ["N", *expected.shape[1:]],
            "weights_sha256": subject.sha256,
            "files": {name: storage.sha256_of(folder / name) for name in (*errors, *others)},
            "checked_images": CHECKED_IMAGES,
            "largest_difference": errors,
        }
        try:
            if isinstance(encoder, Backbone):
                raise UndescribedLayerError("a backbone is loaded by transformers")
            description["layers"] = describe_layers(encoder)
        except UndescribedLayerError as error:
            console.print(f"warning: {SCRIPT} is left out: {error}; use {PROGRAM} or {ONNX}")
        else:
            errors[SCRIPT] = _write_script(description, folder, x, expected)
            description["files"][SCRIPT] = storage.sha256_of(folder / SCRIPT)
        (folder / CARD).write_text(model_card(description, model.info), "utf-8")
        for name in (*errors, *others, CARD):
            _publish_new(storage.join(output, name), (folder / name).read_bytes())
    storage.publish_json(done, description, exclusive=True)
    worst = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    console.print(f"exported {config.output}: largest difference to the original {worst}")
    return description


def _publish_new(uri: str, data: bytes) -> None:
    """Publish a file, unless another export into the same folder was first: files would mix.

    Raises:
        UserError: it is there.
    """
    try:
        storage.publish(uri, data, exclusive=True)
    except FileExistsError:
        raise UserError(
            f"'{uri}' is there already: another export into this folder is running, or was killed "
            "before its end; name another --output, or remove the folder"
        ) from None


def fold_encoder(encoder: nn.Sequential | Backbone) -> nn.Sequential | Backbone:
    """The encoder without batch norm, in the plain memory layout that other programs expect.

    A backbone keeps its own layers, which transformers knows.
    """
    folded = encoder.plain().eval() if isinstance(encoder, Backbone) else fold(encoder)
    plain = folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain.requires_grad_(False)  # type: ignore[no-any-return]


def load_encoder(uri: str) -> nn.Sequential | Backbone:
    """An exported encoder from its safetensors, in eval mode.

    Raises:
        UserError: not an export, altered weights, or a missing, unexpected or reshaped tensor.
    """
    try:
        description = storage.read_json(storage.join(uri, DESCRIPTION))
        is_object = isinstance(description, dict)
        of_backbone = is_object and BACKBONE_WEIGHTS in (description.get("files") or ())
        weights = BACKBONE_WEIGHTS if of_backbone else WEIGHTS
        data = storage.read_bytes(storage.join(uri, weights))
    except FileNotFoundError:
        raise UserError(
            f"'{uri}' is not an exported encoder: it must hold {DESCRIPTION} and {WEIGHTS}, or "
            f"{BACKBONE_WEIGHTS} of a backbone, as jobs/export.py writes them"
        ) from None
    except storage.NotJsonError:
        description = None
    if not isinstance(description, dict) or not {"files", "network"} <= description.keys():
        raise UserError(f"{DESCRIPTION} in '{uri}' was altered or cut; export again")
    if storage.sha256_of_bytes(data) != description["files"][weights]:
        raise UserError(
            f"{weights} in '{uri}' is not the file that {DESCRIPTION} names by its sha256; export "
            "again"
        )
    encoder = fold_encoder(build_network(NetworkConfig(**description["network"])).encoder)
    target = encoder.body.get_submodule("model") if isinstance(encoder, Backbone) else encoder
    files.load_strictly(target, safetensors.torch.load(data), uri)
    return encoder


def _write(
    encoder: nn.Sequential | Backbone, folder: Path, x: Tensor, expected: Features
) -> tuple[dict[str, float], list[str]]:
    """Write every form; the largest difference of each to the original, and what else there is."""
    runs: dict[str, Callable[[], Any]] = {}
    others: list[str] = []
    if isinstance(encoder, Backbone):
        others = [n for n in backbones.save_pretrained(encoder, folder) if n != BACKBONE_WEIGHTS]
        runs[BACKBONE_WEIGHTS] = lambda: backbones.run_pretrained(folder, x).numpy()
    else:
        files.write_tensors(encoder.state_dict(), folder / WEIGHTS)
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        runs[WEIGHTS] = lambda: torch.func.functional_call(encoder, tensors, x).numpy()
    with warnings.catch_warnings():
        # Of torch's own use of its tree functions; nothing that the caller could fix.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        batch = torch.export.Dim("batch")
        program = torch.export.export(encoder, (x[:2],), dynamic_shapes=({0: batch},))
        torch.export.save(program, folder / PROGRAM)
        loaded = torch.export.load(folder / PROGRAM).module()
        _write_onnx(program, folder / ONNX)
    runs[PROGRAM] = lambda: loaded(x).numpy()
    runs[ONNX] = lambda: _run_onnx(folder / ONNX, x)
    errors = {}
    with torch.inference_mode():
        for name, action in runs.items():
            errors[name] = _difference(name, action(), expected)
    return errors, others


def _difference(name: str, found: Features, expected: Features) -> float:
    """The largest difference of a form to the model.

    Raises:
        UserError: it is more than rounding.
    """
    largest = float(np.abs(found - expected).max())
    if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise UserError(
            f"{name} differs from the model by {largest:.2e}, more than {TOLERANCE}; nothing was "
            "exported"
        )
    return largest


def _write_script(
    description: dict[str, Any], folder: Path, x: Tensor, expected: Features
) -> float:
    """Copy `standalone.py`, and run the copy on what lies beside it; returns its difference."""
    (folder / SCRIPT).write_bytes(Path(standalone.__file__).read_bytes())
    (folder / DESCRIPTION).write_text(json.dumps(description))
    spec = importlib.util.spec_from_file_location("exported_encoder", folder / SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with torch.inference_mode():
        found = script.load(folder)(x).numpy()
    return _difference(SCRIPT, found, expected)


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    # It warns of every operator of torchvision, which no encoder has.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["image"], output_names=["features"], verbose=False
        )
    except ImportError as error:
        raise _no_onnx(error) from None
    assert exported is not None
    exported.save(str(path), external_data=False)


def _run_onnx(path: Path, x: Tensor) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise _no_onnx(error) from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x.numpy()})[0]


def _no_onnx(error: ImportError) -> UserError:
    return UserError(
        f"ONNX export needs further packages ({error}); install them with "
        "python -m pip install onnx onnxscript onnxruntime"
    )
