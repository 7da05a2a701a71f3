"""Data that no task reads as it lies there, such as archives, lists and Parquet, are prepared."""

from pipelines import storage
from pipelines.evaluation.data.images import find_layout
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset
from pipelines.runtime.progress import plain_console

SCORED_SHARE = 0.5  # of images that no split of the source parts


def ensure_usable(uri: str, store: str) -> str:
    """The place itself, or a prepared dataset in the store of what is there.

    Raises:
        UserError: nothing is there, or no image.
    """
    if not storage.exists(uri) or find_layout(uri) is not None:
        return uri  # whoever reads it says what is wrong
    plain_console().print(
        f"preparing {uri} to measure on it; where it has no train and val, {SCORED_SHARE:.0%} of "
        "its images are scored and the others learned from",
        soft_wrap=True,
    )
    return prepare_dataset(PrepareConfig(source=uri, store=store, validation_share=SCORED_SHARE))
