"""The page of a filling run: image, hole and filling side by side."""

import cv2
import numpy as np

from pipelines import html_page, storage
from pipelines.data import images, untrusted
from pipelines.data.hole_masks import Hole
from pipelines.data.images import ImageArray
from pipelines.inpaint.read import HoleSource, UnreadableImage, read_image
from pipelines.inpaint.sources import Source, output_name

PAGE = "index.html"
ROWS = 24
THUMBNAIL_PX = 320  # longer side
QUALITY = 85
HOLE_COLOUR = (224, 33, 138)


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
    storage.publish(uri, html_page.document("Filled images", "".join(parts)).encode())
    return uri


def _row(output: str, name: str, source: Source, holes: HoleSource, overlap: int) -> str:
    heading = f"<h2>{html_page.text(name)}</h2>"
    try:
        image, hole, _ = read_image(name, source, holes, overlap=overlap)
    except UnreadableImage as error:  # it changed since it was filled
        return f"{heading}<p class='note'>{html_page.text(error)}</p>"
    after = untrusted.open_rgb(storage.read_bytes(storage.join(output, output_name(name))))
    strip = np.concatenate(
        [
            np.pad(part, ((0, 0), (0, 6), (0, 0)), constant_values=255)
            for part in (_small(image), _marked(image, hole), _small(after))
        ],
        axis=1,
    )
    caption = f"image, hole ({hole.mean():.1%} of it), filled"
    return heading + html_page.image(caption, images.encode(strip, QUALITY), kind="jpeg")


def _marked(image: ImageArray, hole: Hole) -> ImageArray:
    small = _small(image)
    size = (small.shape[1], small.shape[0])
    share = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
    return np.asarray(
        (small * (1 - share) + np.array(HOLE_COLOUR, np.float32) * share).round(), np.uint8
    )


def _small(image: ImageArray) -> ImageArray:
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
