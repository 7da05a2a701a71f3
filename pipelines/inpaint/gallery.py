"""The page of a filling run: input, mask, filled image and target side by side."""

from itertools import starmap

import cv2
import numpy as np

from pipelines import html_page, storage
from pipelines.data import images, untrusted
from pipelines.data.images import ImageArray
from pipelines.inpaint.read import HoleSource, UnreadableImage, read_image
from pipelines.inpaint.sources import Source, output_name

PAGE = "index.html"
ROWS = 24
THUMBNAIL_PX = 320  # longer side
QUALITY = 85
STYLE = """
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(9em, 1fr)); gap: .4em; }
.strip figure { margin: 0; } .strip img { width: 100%; max-width: 320px; }
"""
GREY = 128  # of the hole in the input


def write_gallery(
    output: str,
    sources: dict[str, Source],
    holes: HoleSource,
    faults: dict[str, str],
    *,
    overlap: int,
    title: str,
) -> str:
    """Write OUTPUT/index.html; returns its URI. At most ROWS images, which it says."""
    filled = [name for name in sources if name not in faults]
    rows = [_row(output, name, sources[name], holes, overlap) for name in filled[:ROWS]]
    parts = [f"<p>{html_page.text(title)}</p>"]
    if len(filled) > ROWS:
        parts.append(f"<p class='note'>The first {ROWS} of {len(filled)} filled images.</p>")
    parts.append("".join(rows))
    if faults:
        listed = [[name, why] for name, why in list(faults.items())[:200]]
        more = f" (the first 200 of {len(faults)})" if len(faults) > len(listed) else ""
        parts.append(html_page.table(f"Not filled{more}", ["image", "reason"], listed))
    uri = storage.join(output, PAGE)
    storage.publish(uri, html_page.document("Filled images", "".join(parts), STYLE).encode())
    return uri


def _row(output: str, name: str, source: Source, holes: HoleSource, overlap: int) -> str:
    heading = f"<h2>{html_page.text(name)}</h2>"
    try:
        image, hole, _ = read_image(name, source, holes, overlap=overlap)
    except UnreadableImage as error:  # it changed since it was filled
        return f"{heading}<p class='note'>{html_page.text(error)}</p>"
    after = untrusted.open_rgb(storage.read_bytes(storage.join(output, output_name(name))))
    mask = np.where(hole[..., None], np.uint8(255), np.zeros(3, np.uint8))
    seen = np.where(hole[..., None], np.uint8(GREY), image)
    # A hole that was drawn hides what is known; where a mask marks damage nobody knows it.
    last = "target" if holes.strategy is not None else "image as given"
    parts = {
        "input": seen,
        f"mask ({hole.mean():.1%})": mask,
        "filled": after,
        last: image,
    }
    return heading + f"<div class='strip'>{''.join(starmap(_figure, parts.items()))}</div>"


def _figure(title: str, image: ImageArray) -> str:
    return html_page.image(title, images.encode(_small(image), QUALITY), kind="jpeg")


def _small(image: ImageArray) -> ImageArray:
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
