"""What a measurement returns, how it is committed, and means over seeds.

A stage lives at `<store>/evaluate/<key>/`: figures, then `commit.json` with the rows, written last
and once. In a row, strings say what was measured and numbers are scores; None is "n/a".
"""

import io
import math
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage
from pipelines.storage import commits

Row = dict[str, str | float | None]


class Measured(NamedTuple):
    """Scores with what is needed to read them."""

    rows: list[Row]
    notes: dict[str, Any]
    """Settings and choices, stored beside the scores."""
    figures: dict[str, bytes]
    """PNG by title."""


def stage_uri(store: str, key: str) -> str:
    """Folder of a stage."""
    return storage.join(storage.absolute(store), "evaluate", key[:16])


def find_committed(uri: str) -> Measured | None:
    """The result at a stage's folder, without its figures; None when it is not finished."""
    found = commits.read_commit(uri)
    return None if found is None else Measured(found["rows"], found["notes"], {})


def read_figures(uri: str) -> dict[str, bytes]:
    """The figures of a committed stage, as they were made one after the other."""
    names = storage.read_json(commits.commit_uri(uri))["figures"]
    made = sorted(names.items(), key=itemgetter(1))  # JSON sorts by title, files are numbered
    return {title: storage.read_bytes(storage.join(uri, name)) for title, name in made}


def commit(uri: str, measured: Measured) -> None:
    """Publish a result; when another job was first, its equal result stays."""
    names = {}
    for number, (title, data) in enumerate(measured.figures.items()):
        names[title] = f"figure-{number:03d}.png"
        storage.publish(storage.join(uri, names[title]), data)
    content = {"rows": plain(measured.rows), "notes": measured.notes, "figures": names}
    try:
        storage.publish_json(commits.commit_uri(uri), content, exclusive=True)
    except FileExistsError:
        return


def plain(rows: Iterable[Row]) -> list[Row]:
    """Rows that JSON can hold: no nan."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]


def over_seeds(results: Iterable[list[Row]]) -> list[dict[str, Any]]:
    """One entry per measured thing: its strings, and of every score mean, std, values."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, list[float]]] = {}
    for rows in results:
        for row in rows:
            names = tuple((k, v) for k, v in row.items() if isinstance(v, str))
            scores = groups.setdefault(names, {})
            for name, value in row.items():
                if not isinstance(value, str):
                    scores.setdefault(name, []).extend([] if value is None else [value])
    return [
        {**dict(names), **{name: summary(values) for name, values in scores.items()}}
        for names, scores in groups.items()
    ]


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation; None where there are too few values."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


def png(image: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="png", optimize=False)
    return buffer.getvalue()
