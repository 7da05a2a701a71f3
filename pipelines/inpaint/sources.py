"""Which images a filling run is about, and which mask belongs to which."""

from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple

from pipelines import storage
from pipelines.errors import UserError
from pipelines.inpaint.config import InpaintConfig

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
READ = "JPEG, PNG, WebP or AVIF"


class Source(NamedTuple):
    """An image and its mask."""

    image: str
    """URI."""
    image_bytes: int
    mask: str | None
    """URI; None where holes are drawn, or where the image has no mask."""
    mask_bytes: int | None


class Sources(NamedTuple):
    """All images by name, and what else lies among them."""

    by_name: dict[str, Source]
    others: dict[str, int]
    """Number of files by suffix that are left out."""


def output_name(name: str) -> str:
    """Name of a filled image."""
    return str(PurePosixPath(name).with_suffix(".png"))


def find_sources(config: InpaintConfig) -> Sources:
    """All images in order, by their names relative to the folder; a single file by its own name.

    Raises:
        UserError: nothing there, names that cannot be, too many without a mask, or an output that
            would lie among the images.
    """
    images = _listed(config.images, "images", config.output)
    masks = {} if config.masks is None else _listed(config.masks, "masks", config.output)
    # An image and a mask that are named as files belong together, whatever they are called.
    pair = config.masks is not None and _is_file(config.images) and _is_file(config.masks)
    others: Counter[str] = Counter()
    found: dict[str, Source] = {}
    for name, (uri, size) in images.items():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in SUFFIXES:
            others[suffix or "no suffix"] += 1
            continue
        mask, mask_size = next(iter(masks.values())) if pair else _mask_of(name, masks)
        found[name] = Source(uri, size, mask, mask_size)
    if not found:
        raise UserError(
            f"images is '{config.images}', where there is no {READ} image"
            + (f" ({describe(others)})" if others else "")
        )
    _check_names(config, found)
    lacking = [name for name, source in found.items() if source.mask is None]
    if config.masks is not None and len(lacking) > config.max_bad_share * len(found):
        raise UserError(
            f"{len(lacking)} of {len(found)} images have no mask in '{config.masks}', such as "
            f"{lacking[0]}; a mask has the name of its image, with any of the suffixes "
            f"{' '.join(SUFFIXES)}; max_bad_share allows {config.max_bad_share:.1%}"
        )
    return Sources(found, dict(others))


def describe(others: dict[str, int]) -> str:
    """Files that are left out, in words."""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    return f"left out, because they are not {READ}: {kinds}"


def _listed(uri: str, flag: str, output: str) -> dict[str, tuple[str, int]]:
    """Name -> URI and size of all files of a folder, or of one file."""
    uri = storage.absolute(uri)
    if _is_file(uri):
        return {PurePosixPath(uri).name: (uri, storage.size(uri))}
    try:
        storage.require_folder(uri, flag)
    except UserError:
        raise UserError(f"{flag} is '{uri}'; there is no such folder and no such file") from None
    if storage.is_within(output, uri):
        raise UserError(
            f"output is '{output}', which lies in {flag} '{uri}'; the filled images need a folder "
            "outside it"
        )
    return {name: (storage.join(uri, name), size) for name, size in storage.walk(uri)}


def _is_file(uri: str) -> bool:
    return not storage.is_folder(uri) and storage.exists(uri)


def _mask_of(name: str, masks: dict[str, tuple[str, int]]) -> tuple[str | None, int | None]:
    """The mask of the same name, or of the same name with another suffix."""
    candidates = [name, *(str(PurePosixPath(name).with_suffix(suffix)) for suffix in SUFFIXES)]
    return next((masks[candidate] for candidate in candidates if candidate in masks), (None, None))


def _check_names(config: InpaintConfig, found: dict[str, Source]) -> None:
    for name in found:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(
                f"images is '{config.images}'; the name {name!a} in it is not UTF-8; rename it"
            )
    twins = len(found) - len({output_name(name) for name in found})
    if twins:
        raise UserError(
            f"images is '{config.images}'; {twins} images differ from others only in their "
            "suffix and would overwrite them"
        )
