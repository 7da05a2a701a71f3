"""Images and masks as Python users have them: arrays, images of Pillow, files."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = NDArray[np.uint8] | Image | str | os.PathLike[str]
    Mask = NDArray[Any] | Image | str | os.PathLike[str]
else:  # importing the Python face imports no Pillow
    ImageLike = Mask = Any

Pixels = NDArray[np.uint8]
Place = str | os.PathLike[str]
HALF = 127  # what is brighter in the file of a mask is filled


def pixels_of(image: ImageLike, name: str) -> Pixels:
    """uint8 (H, W, 3), RGB.

    Args:
        image: such an array, an image of Pillow, or the file or URI of an image.
        name: what a message calls it.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return _of_file(image, name)
    found = np.asarray(image if isinstance(image, np.ndarray) else _converted(image, "RGB"))
    if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8 or not found.size:
        raise UserError(
            f"{name} has shape {found.shape} and type {found.dtype}; it must be uint8 (H, W, 3), "
            "RGB, 0 to 255"
        )
    return found


def hole_of(mask: Mask, name: str, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """bool (H, W), True where to fill.

    Args:
        mask: such an array, one of two values (0 and 1, 0 and 255), an image of Pillow or a file;
            of the latter two, what is brighter than half is filled.
        name: what a message calls it.
        size: (H, W) of its image.

    Raises:
        UserError: it is none of these, or of another size.
    """
    found: NDArray[Any]
    if isinstance(mask, str | os.PathLike):
        found = _of_file(mask, name).max(axis=2) > HALF
    elif isinstance(mask, np.ndarray):
        found = mask
    else:
        found = np.asarray(_converted(mask, "L"))
        found = found > HALF if found.dtype == np.uint8 and found.ndim == 2 else found
    if found.dtype != np.bool_:
        values = set(np.unique(found).tolist())
        if not (values <= {0, 1} or values <= {0, 255}):
            raise UserError(
                f"{name} has {len(values)} values of type {found.dtype}; it must be bool, or hold "
                "0 and 1, or 0 and 255, above 0 where to fill"
            )
        found = found > 0
    hole: NDArray[np.bool_] = found
    if hole.shape != tuple(size):
        raise UserError(
            f"{name} has shape {hole.shape}; its image is {tuple(size)}, and both must be the same"
        )
    return hole


def _converted(image: Any, mode: str) -> Any:
    """An image of Pillow in a mode; anything else as it is."""
    return image.convert(mode) if hasattr(image, "convert") else image


def _of_file(place: Place, name: str) -> Pixels:
    from pipelines import storage
    from pipelines.data import untrusted

    uri = storage.absolute(os.fspath(place))
    try:
        return untrusted.open_rgb(storage.read_bytes(uri))
    except untrusted.BadImage as error:
        raise UserError(f"{name} is '{uri}': {error}") from None
