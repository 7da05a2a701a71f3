"""The encoder alone, for use without this project: safetensors, ONNX and torch.export.

    encoder.safetensors   weights with batch norm folded into the layers before it
    encoder.onnx          image float (N, 3, S, S), RGB in [-1, 1] -> features; any N
    encoder.pt2           the same as a torch.export program
    encoder.json          network, sizes and sha256 of each file; written last

Every form is compared with the original, batch norm and all, before anything is published.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ce_model.networks import NetworkConfig, build_generator
from ce_model.transfer.initialisation import fold
from pipelines import storage
from pipelines.errors import UserError
from pipelines.models import files
from pipelines.models.resolve import resolve_model
from pipelines.runtime.progress import plain_console
from pipelines.tracking import client

FORMAT_VERSION = 1
TOLERANCE = 1e-4  # absolute and relative
CHECKED_PICTURES = 3
WEIGHTS, ONNX, PROGRAM, DESCRIPTION = (
    "encoder.safetensors",
    "encoder.onnx",
    "encoder.pt2",
    "encoder.json",
)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the encoder of a model for use elsewhere."""

    model: str
    """Model folder, pretraining stage, MLflow run id or models:/name@alias."""
    output: str
    """Folder to write to."""
    store: str = "store"
    """Where registered models are kept; with SQLite also the tracking."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""


def export_encoder(config: ExportConfig) -> dict[str, Any]:
    """Fold, write, compare, publish; returns the description."""
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
    x = torch.rand(CHECKED_PICTURES, 3, model.side, model.side, generator=noise) * 2 - 1
    with torch.inference_mode():
        expected = model.generator.encoder(x).numpy()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        errors = _write(encoder, folder, x, expected)
        for name in errors:
            storage.publish(storage.join(output, name), (folder / name).read_bytes())
        description = {
            "format_version": FORMAT_VERSION,
            "network": asdict(model.network),
            "input": f"float32 (N, 3, {model.side}, {model.side}), RGB, pixel / 127.5 - 1",
            "output": ["N", *expected.shape[1:]],
            "weights_sha256": subject.sha256,
            "files": {name: storage.sha256_of(folder / name) for name in errors},
            "largest_difference": errors,
        }
    storage.publish_json(done, description, exclusive=True)
    worst = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    plain_console().print(
        f"exported {config.output}: largest difference to the original {worst}",
        soft_wrap=True,
    )
    return description


def fold_encoder(encoder: nn.Sequential) -> nn.Sequential:
    """The encoder without batch norm, in the plain memory layout that other programs expect."""
    plain = fold(encoder).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain.requires_grad_(False)  # type: ignore[no-any-return]


def load_encoder(uri: str) -> nn.Sequential:
    """An exported encoder from its safetensors, in eval mode.

    Raises:
        UserError: not an export, altered weights, or a missing, unexpected or reshaped tensor.
    """
    try:
        description = storage.read_json(storage.join(uri, DESCRIPTION))
        data = storage.read_bytes(storage.join(uri, WEIGHTS))
    except FileNotFoundError:
        raise UserError(
            f"'{uri}' is not an exported encoder: it must hold {DESCRIPTION} and {WEIGHTS}, as "
            "jobs/export.py writes them"
        ) from None
    except storage.NotJsonError:
        description = None
    if not isinstance(description, dict) or not {"files", "network"} <= description.keys():
        raise UserError(f"{DESCRIPTION} in '{uri}' was altered or cut; export again")
    if storage.sha256_of_bytes(data) != description["files"][WEIGHTS]:
        raise UserError(
            f"{WEIGHTS} in '{uri}' is not the file that {DESCRIPTION} names by its sha256; export "
            "again"
        )
    encoder = fold_encoder(build_generator(NetworkConfig(**description["network"])).encoder)
    files.load_strictly(encoder, safetensors.torch.load(data), uri)
    return encoder


def _write(
    encoder: nn.Sequential, folder: Path, x: Tensor, expected: np.ndarray[Any, np.dtype[np.float32]]
) -> dict[str, float]:
    """Write every form; returns the largest difference of each to the original."""
    runs: dict[str, Callable[[], Any]] = {}
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
            found = action()
            errors[name] = float(np.abs(found - expected).max())
            if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
                raise UserError(
                    f"{name} differs from the model by {errors[name]:.2e}, more than {TOLERANCE}; "
                    "nothing was exported"
                )
    return errors


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    # It warns of every operator of torchvision, which no encoder has.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["picture"], output_names=["features"], verbose=False
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
    return session.run(None, {"picture": x.numpy()})[0]


def _no_onnx(error: ImportError) -> UserError:
    return UserError(
        f"ONNX export needs further packages ({error}); install them with "
        "pip install 'context-encoder-pipeline[export]'"
    )
