"""Prepared datasets for the tests."""

import hashlib
import importlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.data.manifest import Manifest, read_manifest
from pipelines.data.shards import read_row_group, row_groups
from pipelines.errors import UserError
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset
from pipelines.runtime import cluster


def prepare_config(source: Path | str, output: Path | str, **more: Any) -> PrepareConfig:
    base = PrepareConfig(
        source=str(source),
        output=str(output),
        sides=(64,),
        stored_side=96,
        row_group_rows=8,
        rows_per_shard=16,
        validation_share=0.2,
    )
    return replace(base, **more)


def prepared(source: Path | str, output: Path | str, **more: Any) -> Manifest:
    return read_manifest(prepare_dataset(prepare_config(source, output, **more)))


def write_smooth_images(folder: Path, count: int) -> Path:
    """JPEG files of 200 x 160 px with wide blots of colour."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for at in range(count):
        coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (200, 160), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{at}.jpg"), image)
    return folder


def run_serially(patch: pytest.MonkeyPatch) -> None:
    """Run the tasks of `prepare` one after the other in this process."""

    def one_by_one(what: str, items: Any, task: Any) -> None:
        for item in items:
            try:
                task(dict(item))
            except OSError as error:
                raise UserError(f"{what} failed: {error}") from None

    for name in ("passes", "relabel", "sidecars"):
        module = importlib.import_module(f"pipelines.prepare.{name}")
        patch.setattr(module, "run_tasks", one_by_one)
    patch.setattr(cluster, "connect", nullcontext)


def rows_of(uri: Path | str, *columns: str) -> dict[str, tuple[Any, ...]]:
    """All rows by key; no key may come twice."""
    manifest = read_manifest(str(uri))
    rows: dict[str, tuple[Any, ...]] = {}
    for split in manifest.splits:
        for group in row_groups(manifest, split):
            table = read_row_group(str(uri), group, ["key", *columns])
            for row in table.to_pylist():
                assert row["key"] not in rows
                rows[row["key"]] = (split, *(row[name] for name in columns))
    return rows


def files_of(uri: Path | str) -> dict[str, str]:
    """Hash of every shard and sidecar."""
    paths = sorted(Path(uri).rglob("*.parquet"))
    return {str(p.relative_to(uri)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def quarantine_of(uri: Path | str) -> dict[str, str]:
    rows = [row for p in Path(uri).glob("quarantine-*") for row in pq.read_table(p).to_pylist()]
    return {row["key"]: row["fault"] for row in rows}


def empty_manifest() -> Manifest:
    nothing = dict.fromkeys(("seed", "listed", "written", "quarantined", "duplicates"), 0)
    return Manifest(
        splits={}, classes=(), mean_rgb=(0.0, 0.0, 0.0), masks=(), stored_side=256, **nothing
    )
