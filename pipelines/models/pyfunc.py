"""The served model: images and masks in, features and filled images out.

MLflow runs `logged_model.py` to load a model (`models from code`), so a model holds no pickle: its
weights are safetensors, its settings JSON.

Input: image uint8 (B, H, W, 3) RGB of any size and mask uint8 (B, H, W), not 0 where the image is
hidden. Output: features float32 (B, D) of the visible context, squeezed to the square that the
encoder reads (pool5 of `alexnet`, the bottleneck of `inpaint`), and filled uint8 (B, H, W, 3),
changed inside the hole only, wherever that lies; of preset `features`, which predicts no colours,
features alone.
"""

from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import cv2
import mlflow.pyfunc
import numpy as np
import torch

from ce_model.networks import predicts_images
from ce_model.training import make_views
from pipelines.data.hole_masks import touched_pixels
from pipelines.models import files
from pipelines.models.fill import fill_photographs


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
        image = np.array(model_input["image"], np.uint8)
        hidden = np.array(model_input["mask"]) != 0
        filled = None
        if predicts_images(model.network):
            filled = np.stack(fill_photographs(model, list(image), list(hidden)))
        side = (model.side, model.side)
        if image.shape[1:3] != side:
            shrinks = min(image.shape[1:3]) > model.side
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = np.stack([cv2.resize(one, side, interpolation=how) for one in image])
            hidden = np.stack([touched_pixels(one, *side) for one in hidden])
        views = make_views(
            torch.from_numpy(image), torch.from_numpy(hidden), model.network, model.objective
        )
        with torch.no_grad():
            features = list(model.generator.encoder_features(views.context).values())[-1]
        found = {"features": features.flatten(1).numpy()}
        return found if filled is None else {**found, "filled": filled}


def _path(uri: str) -> str:
    return url2pathname(urlparse(uri).path) if uri.startswith("file:") else uri
