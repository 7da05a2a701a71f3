"""Models logged to MLflow, and fetched from it."""

import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.models
import numpy as np
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from pipelines import storage
from pipelines.errors import UserError, first_line
from pipelines.tracking.client import client, global_server, require_there

WEIGHTS_TAG = "weights_sha256"
DESCRIPTION_TAG = "mlflow.note.content"  # where MLflow's pages look for one
NOT_IN_LOGGED_NAME = r"[/:.%\"'\s]+"

PACKAGES = Path(__file__).parents[2]
LOGGED_MODEL = PACKAGES / "pipelines" / "models" / "logged_model.py"
CODE_ARCHIVE = "context_encoder.zip"  # the name that logged_model.py looks for


def log_model(
    uri: str,
    run_id: str,
    folder: Path,
    side: int,
    requirements: list[str],
    *,
    fills: bool = True,
    name: str = "model",
    description: str = "",
) -> str:
    """Log a model folder (`weights.safetensors`, `model.json`) as a pyfunc of a run, once.

    The model is an archive of our source beside plain tensors: loading it unpickles nothing. Input
    and output are described in `models/pyfunc.py`. The run goes on: whoever has begun it ends it.
    A run that has a whole model of these weights gets no second one: the server may have gone away
    after the model and before the summary that names it.

    Returns:
        the model's URI, `models:/<model id>`.
    """
    digest = storage.sha256_of(folder / "weights.safetensors")
    if logged_before := _model_of_weights(uri, run_id, digest):
        return logged_before
    images, masks = ("image", np.dtype(np.uint8)), ("mask", np.dtype(np.uint8))
    features = TensorSpec(np.dtype(np.float32), (-1, -1), "features")
    filled = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), "filled")
    signature = ModelSignature(
        inputs=Schema(
            [
                TensorSpec(images[1], (-1, -1, -1, 3), images[0]),
                TensorSpec(masks[1], (-1, -1, -1), masks[0]),
            ]
        ),
        outputs=Schema([features, filled] if fills else [features]),
    )
    mask = np.zeros((2, side, side), np.uint8)
    mask[:, side // 4 : side * 3 // 4, side // 4 : side * 3 // 4] = 1
    ramp = np.arange(side, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None, None], (2, side, side, 3))
    with (
        tempfile.TemporaryDirectory() as temporary,
        global_server(uri),
        mlflow.start_run(run_id=run_id),
    ):
        logged = mlflow.pyfunc.log_model(
            name=re.sub(NOT_IN_LOGGED_NAME, "-", name),
            python_model=str(LOGGED_MODEL),
            artifacts={"model": folder.as_uri()},
            code_paths=[_archive_code(Path(temporary) / CODE_ARCHIVE)],
            pip_requirements=requirements,
            signature=signature,
            input_example={"image": np.ascontiguousarray(image), "mask": mask},
            tags={WEIGHTS_TAG: digest, DESCRIPTION_TAG: description},
        )
        mlflow.end_run("RUNNING")  # else the end of the block would call it FINISHED
    return str(logged.model_uri)


def _archive_code(path: Path) -> str:
    """Write the source of `pipelines` and `ce_model` as one file, from which Python imports."""
    # Files of container images are of 1970, before the first year that an archive knows.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for package in ("ce_model", "pipelines"):
            for file in sorted((PACKAGES / package).rglob("*.py")):
                archive.write(file, file.relative_to(PACKAGES))
    return str(path)


def _model_of_weights(uri: str, run_id: str, digest: str) -> str | None:
    """URI of the oldest whole model of these weights that a run has logged."""
    server = client(uri)
    models = server.search_logged_models(
        [server.get_run(run_id).info.experiment_id],
        f"source_run_id = '{run_id}' AND tags.{WEIGHTS_TAG} = '{digest}'",
        order_by=[{"field_name": "creation_timestamp"}],
    )
    whole = [str(model.model_uri) for model in models if model.status == LoggedModelStatus.READY]
    return whole[0] if whole else None


def run_summary(uri: str, run_id: str) -> dict[str, Any]:
    """What a pretraining run says of itself: its key, its model folder, its logged model.

    Raises:
        UserError: no such run, or it has not finished.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            require_there(uri)
            local = client(uri).download_artifacts(run_id, "summary.json", temporary)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"model is run '{run_id}', from which {uri} gives no summary.json "
                f"({first_line(error)}); name a finished pretraining run or a model folder"
            ) from None
        found: dict[str, Any] = json.loads(Path(local).read_text())
        return found


def download_model(uri: str, model_uri: str, folder: Path) -> str | None:
    """Copy the model folder inside a logged or registered model; returns the run that logged it.

    Args:
        uri: tracking server, which is also the registry.
        model_uri: models:/name@alias, models:/name/version or models:/<model id>.
        folder: where `weights.safetensors` and `model.json` go.

    Raises:
        UserError: no such model, or not one of ours.
    """
    try:
        require_there(uri)
        client(uri)  # what connects is asked first, where its errors are MLflow's
        with global_server(uri):
            mlflow.artifacts.download_artifacts(
                artifact_uri=model_uri, dst_path=str(folder / "logged")
            )
    except (MlflowException, OSError) as error:
        reason = first_line(error)
        raise UserError(f"model is '{model_uri}', which {uri} does not give: {reason}") from None
    found = next((folder / "logged").rglob("weights.safetensors"), None)
    if found is None:
        raise UserError(f"model is '{model_uri}', which holds no weights.safetensors of ours")
    for name in ("weights.safetensors", "model.json"):
        (found.parent / name).replace(folder / name)
    run_id = mlflow.models.Model.load(str(folder / "logged")).run_id
    return None if run_id is None else str(run_id)
