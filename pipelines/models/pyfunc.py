"""The served model: images and masks in, features and filled images out.

MLflow runs this file to load a model (`models from code`), so a model holds no pickle: its weights
are safetensors, its settings JSON.

Input: image uint8 (B, S, S, 3) RGB and mask uint8 (B, S, S), 1 where the image is hidden.
Output: features float32 (B, D) of the visible context (pool5 of `alexnet`, the bottleneck of
`inpaint`) and filled uint8 (B, S, S, 3), changed inside the hole only.
"""

from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow.models
import mlflow.pyfunc
import numpy as np
import torch

from ce_model.training import fill, make_views
from pipelines.models import files


class ServedContextEncoder(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A context encoder behind the pyfunc interface."""

    # MLflow would read type hints of `predict` as a schema; the logged signature is the schema.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Read the model folder."""
        self._model = files.load_model(_path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Features and filled images, by name, for `image` and `mask`."""
        model = self._model
        image = torch.from_numpy(np.array(model_input["image"], np.uint8))
        hidden = torch.from_numpy(np.array(model_input["mask"]) != 0)
        views = make_views(image, hidden, model.network, model.objective)
        with torch.no_grad():
            features = list(model.generator.encoder_features(views.context).values())[-1]
        filled = fill(
            model.generator, image, hidden,
            network=model.network, objective=model.objective, dtype=torch.float32,
        )  # fmt: skip
        return {"features": features.flatten(1).numpy(), "filled": filled.numpy()}


def _path(uri: str) -> str:
    return url2pathname(urlparse(uri).path) if uri.startswith("file:") else uri


mlflow.models.set_model(ServedContextEncoder())
