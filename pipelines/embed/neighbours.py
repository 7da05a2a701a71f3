"""Nearest neighbours of query images among embedded ones, as a table and a contact sheet.

The mean of the collection is taken off every vector before the cosine: what all images have in
common would else hide what tells them apart.
"""

import io
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.table import Table

from pipelines import storage
from pipelines.data import untrusted
from pipelines.data.images import ImageArray
from pipelines.embed import features, sources
from pipelines.embed.config import EmbedConfig
from pipelines.embed.features import Embeddings
from pipelines.embed.sources import Listed
from pipelines.errors import UserError
from pipelines.models import embed
from pipelines.models.files import LoadedModel
from pipelines.runtime.progress import plain_console

TILE_PX, TEXT_PX, GAP_PX = 128, 14, 4


class Neighbour(NamedTuple):
    """An embedded image and how near it is."""

    key: str
    label: str | None
    cosine: float
    """Of what is left without the mean of the collection, -1 to 1."""
    unit: int


def open_queries(config: EmbedConfig, model: LoadedModel) -> dict[str, ImageArray]:
    """The query images at the network's side, by their names.

    Raises:
        UserError: one cannot be used.
    """
    opened = {}
    for name in config.query:
        try:
            data = storage.read_bytes(storage.absolute(name))
            opened[name] = embed.open_square(data, model.side, config.max_pixels)
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f"query is '{name}'; there is no such image") from None
        except untrusted.BadImage as error:
            raise UserError(f"query is '{name}', which cannot be used: {error}") from None
    return opened


def show(
    config: EmbedConfig,
    uri: str,
    embeddings: Embeddings,
    model: LoadedModel,
    layer: str,
    queries: dict[str, ImageArray],
    found: Listed,
) -> None:
    """Print the neighbours of every query; its contact sheet lies beside the features."""
    console = plain_console(stderr=False, soft_wrap=True)
    squares = np.stack(list(queries.values()))
    vectors = embed.embed_squares(model, squares, layer, config.pool, normalize=config.normalize)
    nearest = find_nearest(uri, embeddings, vectors, config.neighbours)
    images = _images(found, {each for row in nearest for each in row}, model.side)
    for number, (name, row) in enumerate(zip(queries, nearest, strict=True)):
        table = Table(title=f"nearest to {name}", title_justify="left")
        for head in ("cosine", "label", "key"):
            table.add_column(head, overflow="fold")
        for each in row:
            table.add_row(f"{each.cosine:.3f}", each.label or "", each.key)
        console.print(table)
        tiles = [images.get(each.key) for each in row]
        texts = [f"{each.cosine:.3f} {each.label or ''}" for each in row]
        sheet = contact_sheet([squares[number], *tiles], ["query", *texts])
        stem = PurePosixPath(name).stem
        place = storage.join(uri, f"neighbours-{number:02}-{stem}.png")
        storage.publish(place, sheet)
        console.print(place)


def find_nearest(
    uri: str, embeddings: Embeddings, queries: NDArray[np.float32], count: int
) -> list[list[Neighbour]]:
    """The nearest of each query, nearest first; equal ones in the order of the files.

    Two passes over the files, one row group in memory at a time.

    Args:
        uri: of the features.
        embeddings: what lies there.
        queries: float32 (Q, D).
        count: neighbours of each query.
    """
    total = np.zeros(embeddings.width)
    for part in features.parts(uri, embeddings):
        total += part.features.sum(0, dtype=np.float64)
    mean = total / embeddings.rows
    wanted = _directions(queries - mean)
    best: list[list[Neighbour]] = [[] for _ in queries]
    for part in features.parts(uri, embeddings):
        cosines = wanted @ _directions(part.features - mean).T
        for row, values in zip(best, cosines, strict=True):
            for at in np.argsort(-values, kind="stable")[:count]:
                found = Neighbour(part.keys[at], part.labels[at], float(values[at]), part.unit)
                row.append(found)
            row.sort(key=lambda each: -each.cosine)
            del row[count:]
    return best


def _directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: NDArray[np.float64] = vectors / np.maximum(lengths, embed.SMALLEST_NORM)
    return directions


def _images(found: Listed, wanted: set[Neighbour], side: int) -> dict[str, ImageArray]:
    """The squares of some images by key, read again from the source."""
    by_unit: dict[int, set[str]] = {}
    for each in wanted:
        by_unit.setdefault(each.unit, set()).add(each.key)
    images = {}
    for unit in found.units():
        for key in by_unit.get(unit["unit"], ()):
            data = sources.find_image(unit, key)
            if data is not None:
                images[key] = embed.open_square(data, side)
    return images


def contact_sheet(tiles: list[ImageArray | None], texts: list[str]) -> bytes:
    """One row of square images with a line of text under each, as PNG; grey where there is none."""
    step = TILE_PX + GAP_PX
    sheet = Image.new("RGB", (step * len(tiles) + GAP_PX, TILE_PX + TEXT_PX + 3 * GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for at, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        left = GAP_PX + at * step
        if tile is None:
            draw.rectangle((left, GAP_PX, left + TILE_PX, GAP_PX + TILE_PX), fill="lightgrey")
        else:
            small = Image.fromarray(tile).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, GAP_PX))
        draw.text((left, TILE_PX + 2 * GAP_PX), text[:20], fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, format="png")
    return buffer.getvalue()
