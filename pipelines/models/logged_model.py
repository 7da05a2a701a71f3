"""What MLflow runs to load a logged model (`models from code`).

Our code lies beside it as one archive: as files it would be 300 requests to an artifact server.
"""

import sys
from pathlib import Path

import mlflow.models

CODE = Path(__file__).parent / "code" / "context_encoder.zip"

if CODE.exists():  # not while a model is logged, from a checkout or an installation
    sys.path.insert(0, str(CODE))

from pipelines.models.pyfunc import ServedContextEncoder  # noqa: E402

mlflow.models.set_model(ServedContextEncoder())
