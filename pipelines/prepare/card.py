"""The card of a dataset: what a person wants to know of it, with a sheet of images and masks."""

import json
import os
from collections import Counter
from itertools import chain
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from pipelines import html_page, storage
from pipelines.data import images
from pipelines.data.manifest import Manifest, MaskSpec
from pipelines.data.shards import read_row_group, row_groups
from pipelines.data.source_names import source_name
from pipelines.errors import counted
from pipelines.prepare import class_facts
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.progress import console

CARD_JSON, CARD_HTML, SHEET = "card.json", "card.html", "card.png"
SHEET_ROWS, TILE_PX, CAPTION_PX = 8, 128, 18
TRACKING_WAIT_S = 60.0


def write(uri: str, manifest: Manifest) -> dict[str, Any]:
    """Write the card of a committed dataset into its folder; returns its facts."""
    facts = describe(uri, manifest)
    sheet = contact_sheet(uri, manifest)
    storage.publish(storage.join(uri, SHEET), sheet)
    storage.publish(storage.join(uri, CARD_HTML), _page(facts, sheet).encode())
    storage.publish_json(storage.join(uri, CARD_JSON), facts)  # last, as `complete` looks for it
    return facts


def complete(uri: str, manifest: Manifest) -> None:
    """Write the card where the job that committed the dataset was killed before it could."""
    place = storage.join(uri, CARD_JSON)
    there = storage.read_json(place) if storage.exists(place) else {}
    if (there.get("fingerprint"), there.get("revision")) != (
        manifest.fingerprint,
        manifest.revision,
    ):
        write(uri, manifest)


def describe(uri: str, manifest: Manifest) -> dict[str, Any]:
    """The facts of the card; reads labels and footers, one shard at a time."""
    by_class = {split: _rows_by_class(uri, manifest, split) for split in manifest.splits}
    return {
        "fingerprint": manifest.fingerprint,
        "source": manifest.source,
        "pictures": {split: manifest.rows(split) for split in manifest.splits},
        "shards": {split: len(files) for split, files in manifest.splits.items()},
        "bytes": {
            split: sum(f.bytes + sum(s.bytes for s in f.sidecars) for f in files)
            for split, files in manifest.splits.items()
        },
        "bytes_per_column": _bytes_per_column(uri, manifest),
        "pictures_per_class": by_class,
        **class_facts.facts(by_class, manifest.classes, manifest.contradictions),
        "not_read": manifest.not_read,
        "listed": manifest.listed,
        "written": manifest.written,
        "quarantined": manifest.quarantined,
        "duplicates": manifest.duplicates,
        "relabelled": manifest.relabelled,
        "quarantine": manifest.quarantine,
        "converted": manifest.converted,
        "mean_rgb": [round(value, 3) for value in manifest.mean_rgb],
        "stored_side": manifest.stored_side,
        "seed": manifest.seed,
        "masks": [f"{spec.column} x {spec.variants}" for spec in manifest.masks],
        "revision": manifest.revision,
    }


def _rows_by_class(uri: str, manifest: Manifest, split: str) -> dict[str, int]:
    counts: Counter[int | None] = Counter()
    for group in row_groups(manifest, split):
        counts.update(read_row_group(uri, group, ["label"]).column("label").to_pylist())
    names = dict(enumerate(manifest.classes))
    return {
        class_facts.NO_CLASS if label is None else names[label]: count
        for label, count in sorted(counts.items(), key=lambda item: (item[0] is None, item[0]))
    }


def _bytes_per_column(uri: str, manifest: Manifest) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for files in manifest.splits.values():
        for file in files:
            for path in (file.path, *(sidecar.path for sidecar in file.sidecars)):
                with storage.open_input(storage.join(uri, path)) as opened:
                    footer = pq.read_metadata(opened)
                for group in range(footer.num_row_groups):
                    for index in range(footer.num_columns):
                        column = footer.row_group(group).column(index)
                        sizes[column.path_in_schema] += column.total_compressed_size
    return dict(sizes)


def contact_sheet(uri: str, manifest: Manifest) -> bytes:
    """PNG: a few images, each whole and with one hole per mask column of the largest side."""
    side = max(spec.side for spec in manifest.masks)
    specs = [spec for spec in manifest.masks if spec.side == side]
    split = next(split for split in manifest.splits if manifest.rows(split))
    group = row_groups(manifest, split)[0]
    columns = ["key", "image", *(spec.column for spec in specs)]
    rows = read_row_group(uri, group, columns).slice(0, SHEET_ROWS).to_pylist()
    caption = _caption(["image", *(spec.strategy for spec in specs)])
    lines = [_line(row, specs, manifest.mean_rgb) for row in rows]
    sheet = np.concatenate([caption, *lines])
    done, png = cv2.imencode(".png", np.ascontiguousarray(sheet[..., ::-1]))
    assert done
    return png.tobytes()


def _line(
    row: dict[str, Any], specs: list[MaskSpec], mean_rgb: tuple[float, float, float]
) -> NDArray[np.uint8]:
    image = images.square(images.decode(row["image"]), specs[0].side, specs[0].side, 0.5, 0.5)
    tiles, fill = [image], np.array(mean_rgb).astype(np.uint8)
    for spec in specs:
        hidden = unpack(row[spec.column], spec)
        tiles.append(np.where(hidden[..., None], fill, image))
    small = [cv2.resize(tile, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA) for tile in tiles]
    return np.concatenate(small, axis=1)


def unpack(cell: bytes, spec: MaskSpec, variant: int = 0) -> NDArray[np.bool_]:
    """One mask of a cell: bool (side, side), True is hidden."""
    begin = variant * spec.bytes_per_mask
    packed = np.frombuffer(cell[begin : begin + spec.bytes_per_mask], np.uint8)
    return np.unpackbits(packed, count=spec.side**2).reshape(spec.side, spec.side).astype(bool)


def _caption(words: list[str]) -> NDArray[np.uint8]:
    strip = np.full((CAPTION_PX, TILE_PX * len(words), 3), 255, np.uint8)
    for place, word in enumerate(words):
        at = (place * TILE_PX + 3, CAPTION_PX - 5)
        cv2.putText(strip, word, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _page(facts: dict[str, Any], sheet: bytes) -> str:
    parts = [
        html_page.table("", ["dataset", ""], _summary(facts), "facts"),
        html_page.image(
            "images as stored; each with its first hole of every strategy, in the mean colour",
            sheet,
        ),
        _splits(facts),
        _warnings(facts),
        _remarks(facts),
        _columns(facts),
        _classes(facts),
    ]
    return html_page.document(f"Dataset: {source_name(facts['source'])}", "".join(parts))


def _summary(facts: dict[str, Any]) -> list[list[str]]:
    sums = (
        f"{facts['listed']:,} listed = {facts['written']:,} written + "
        f"{facts['quarantined']:,} quarantined + {counted(facts['duplicates'], 'duplicate')}"
    )
    names = ("fingerprint", "source", "masks", "mean_rgb", "stored_side", "seed", "revision")
    texts = [
        ", ".join(map(str, facts[name])) if isinstance(facts[name], list) else str(facts[name])
        for name in names
    ]
    words = [name.replace("_", " ") for name in names]
    return [["images", sums], *([word, text] for word, text in zip(words, texts, strict=True))]


def _splits(facts: dict[str, Any]) -> str:
    rows = [
        [split, f"{count:,}", f"{facts['shards'][split]:,}", f"{facts['bytes'][split] / 1e6:,.1f}"]
        for split, count in facts["pictures"].items()
    ]
    return html_page.table("splits", ["split", "images", "shards", "MB"], rows)


def _warnings(facts: dict[str, Any]) -> str:
    _, count, which = class_facts.row(facts)
    rows = [["classes", f"{count}: {which}"], *(["warning", text] for text in facts["warnings"])]
    rows += [["not read", f"{count:,} {kind}"] for kind, count in facts["not_read"].items()]
    return html_page.table("notes", ["", ""], rows)


def _remarks(facts: dict[str, Any]) -> str:
    rows = [
        [what, kind, f"{count:,}"]
        for what, name in (("quarantined", "quarantine"), ("converted", "converted"))
        for kind, count in facts[name].items()
    ]
    if not rows:
        return "<p>No image was quarantined for a fault, none was converted.</p>"
    return html_page.table("faults and conversions", ["what became of it", "class", "images"], rows)


def _columns(facts: dict[str, Any]) -> str:
    sizes, pictures = facts["bytes_per_column"], max(facts["written"], 1)
    whole = max(sum(sizes.values()), 1)
    rows = [
        [name, f"{size:,}", f"{size / pictures:,.1f}", f"{size / whole:.1%}"]
        for name, size in sizes.items()
    ]
    return html_page.table("columns", ["column", "bytes", "bytes per image", "share"], rows)


def _classes(facts: dict[str, Any]) -> str:
    splits = facts["pictures_per_class"]
    names = list(dict.fromkeys(chain.from_iterable(splits.values())))
    rows = [[name, *(f"{counts.get(name, 0):,}" for counts in splits.values())] for name in names]
    return html_page.table("images per class", ["class", *splits], rows)


def show(uri: str, manifest: Manifest, facts: dict[str, Any]) -> None:
    """The closing table, and what looks wrong."""
    console.print(f"dataset {uri}", soft_wrap=True)
    console.print(f"fingerprint {manifest.fingerprint}", soft_wrap=True)
    table = Table(show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for split, files in manifest.splits.items():
        size = sum(file.bytes + sum(s.bytes for s in file.sidecars) for file in files)
        shards = f"{counted(len(files), 'shard')}, {size / 1e6:,.1f} MB"
        table.add_row(split, counted(manifest.rows(split), "image"), shards)
    table.add_row(*class_facts.row(facts))
    table.add_row(
        "listed",
        counted(manifest.listed, "image"),
        f"= {manifest.written:,} written + {manifest.quarantined:,} quarantined "
        f"+ {counted(manifest.duplicates, 'duplicate')}",
    )
    if manifest.relabelled:
        told = "given another class after they were written"
        table.add_row("relabelled", counted(manifest.relabelled, "image"), told)
    for name, counts in (("quarantined", manifest.quarantine), ("converted", manifest.converted)):
        if counts:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
            table.add_row(name, f"{sum(counts.values()):,}", kinds)
    columns = ", ".join(f"{spec.column} x {spec.variants}" for spec in manifest.masks)
    table.add_row("masks", counted(len(manifest.masks), "column"), columns)
    console.print(table)
    for warning in facts["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True)


def track(config: PrepareConfig, uri: str, manifest: Manifest) -> None:
    """Log the dataset and its card to MLflow; a server that is away delays nothing for long."""
    wanted = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not wanted and (config.output is not None or not storage.is_local(config.store)):
        return
    from pipelines.tracking import client, runs
    from pipelines.tracking.recorder import (
        Recorder,  # takes seconds to import, and only this needs it
    )

    home = config.output or config.store  # a store that nothing is kept in stays as it is
    recorder = Recorder(
        runs.RunSpec(
            uri=client.tracking_uri(config.tracking_uri, home),
            store=home,
            experiment="prepare",
            key=manifest.jobs[-1],
            name=f"{source_name(manifest.source)}, {manifest.jobs[-1][:8]}",
            params={"source": config.shown_source, "dataset": uri, "rows": manifest.written},
            tags={"stage": "prepare", "dataset_fingerprint": manifest.fingerprint},
            dataset_uri=uri,
            dataset_fingerprint=manifest.fingerprint,
        )
    )
    facts = storage.read_json(storage.join(uri, CARD_JSON))
    counts = {f"pictures_{split}": float(rows) for split, rows in facts["pictures"].items()}
    recorder.metrics({**counts, "quarantined": float(manifest.quarantined)}, 0)
    for name in (CARD_HTML, CARD_JSON, SHEET):
        recorder.artifact(name, storage.read_bytes(storage.join(uri, name)))
    outcome = recorder.finish("FINISHED", TRACKING_WAIT_S)
    if outcome.problem:
        console.print(
            f"the dataset is complete, but MLflow did not take its card: {outcome.problem}"
        )


def as_text(facts: dict[str, Any]) -> str:
    """The card for a terminal."""
    return json.dumps(facts, indent=2)
