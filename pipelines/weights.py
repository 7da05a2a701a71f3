"""The old name of `pipelines.models.files`, which models logged before 0.2 import."""

from pipelines.models.files import *  # noqa: F403
from pipelines.models.files import load_model as load_model
