"""The old name of `pipelines.models.pyfunc`, for models logged before 0.2."""

from pipelines.models.pyfunc import ServedContextEncoder as ServedContextEncoder
