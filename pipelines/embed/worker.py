"""Ray actor: the images of a unit -> its file of features, and a record that makes it done."""

import secrets
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ce_model.choices import Pool
from pipelines import storage
from pipelines.data import untrusted
from pipelines.data.images import ImageArray
from pipelines.embed import features, sources
from pipelines.embed.sources import Encoded
from pipelines.errors import UserError
from pipelines.models import embed, files
from pipelines.prepare.sources.labels import Labels
from pipelines.prepare.sources.member import Beside
from pipelines.prepare.tasks import failing_as_user_error

MAX_FAULTS = 20_000  # of one unit, held in memory until it ends


class Task(NamedTuple):
    """What an actor gets: plain values that can be sent."""

    model_uri: str
    output: str
    work: str
    layer: str
    pool: Pool
    normalize: bool
    dtype: str
    width: int
    batch_size: int
    max_pixels: int
    threads: int
    labels: Labels | None
    secrets: dict[str, str]


class Embedder:
    """Ray actor: holds the model, embeds one unit after the other."""

    def __init__(self, task: Task) -> None:
        """Load the model, once per process."""
        cv2.setNumThreads(1)  # images fill the cores, not threads of one image
        self._task = task
        self._model = files.load_model(task.model_uri)
        self._model.generator.to("cuda" if torch.cuda.is_available() else "cpu")
        self._pool = ThreadPoolExecutor(task.threads)

    def embed(self, unit: int) -> dict[str, int]:
        """Do a unit; returns what the progress display shows."""
        with failing_as_user_error("embedding"):
            stored = storage.read_json(unit_uri(self._task.work, unit))
            return self._embed(sources.reveal(stored, self._task.secrets), unit)

    def _embed(self, content: sources.Unit, unit: int) -> dict[str, int]:
        faults: list[dict[str, str]] = []
        bare_names: Counter[str] = Counter()
        beside = Beside.empty()
        read = sources.read(content, self._task.labels, bare_names, beside)
        # Two jobs of one key may do a unit at once: neither writes over the file of the other.
        path = f"{features.PART}{unit:06}-{secrets.token_hex(4)}.parquet"
        size = 0
        with storage.staged_file(storage.join(self._task.output, path)) as staged:
            with features.writer(staged, self._task.width, self._task.dtype) as rows:
                for batch in self._batches(read, faults):
                    found = embed.embed_squares(
                        self._model,
                        np.stack([square for _, square in batch]),
                        self._task.layer,
                        self._task.pool,
                        normalize=self._task.normalize,
                    )
                    images = [image for image, _ in batch]
                    rows.add([i.key for i in images], [i.label for i in images], found)
                    size += sum(len(image.data or b"") for image in images)
            digest, written = storage.sha256_of(staged), staged.stat().st_size
        file = {"path": path, "rows": rows.rows, "bytes": written, "sha256": digest, "unit": unit}
        record = {
            "file": file,
            "faults": faults,
            "bare_names": bare_names,
            "not_read": beside.others,
            "folders": beside.folders,
        }
        storage.publish_json(record_uri(self._task.work, unit), record)
        return {"images": rows.rows + len(faults), "bytes": size}

    def _batches(
        self, read: Iterator[Encoded], faults: list[dict[str, str]]
    ) -> Iterator[list[tuple[Encoded, ImageArray]]]:
        """Decoded images in the order of the source; what cannot be used goes to `faults`."""
        batch: list[tuple[Encoded, ImageArray]] = []
        for image, square, fault in self._decoded(read):
            if square is None:
                faults.append({"key": image.key, "fault": fault})
                if len(faults) > MAX_FAULTS:
                    raise UserError(
                        f"source holds more than {MAX_FAULTS} bad images in one archive, up to "
                        f"'{image.key}' ({fault}); leave it out"
                    )
                continue
            batch.append((image, square))
            if len(batch) == self._task.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _decoded(self, read: Iterator[Encoded]) -> Iterator[tuple[Encoded, ImageArray | None, str]]:
        """Decoding is prefetched in threads, two batches at most."""
        ahead: deque[tuple[Encoded, Future[tuple[ImageArray | None, str]]]] = deque()
        for image in read:
            ahead.append((image, self._pool.submit(self._square, image)))
            if len(ahead) >= 2 * self._task.batch_size:
                first, decoded = ahead.popleft()
                yield (first, *decoded.result())
        while ahead:
            first, decoded = ahead.popleft()
            yield (first, *decoded.result())

    def _square(self, image: Encoded) -> tuple[ImageArray | None, str]:
        """The image at the network's side, or why there is none."""
        if image.data is None:
            return None, image.fault
        try:
            return embed.open_square(image.data, self._model.side, self._task.max_pixels), ""
        except untrusted.BadImage as error:
            return None, f"{error.kind}: {error}"


def unit_uri(work: str, unit: int) -> str:
    """Where a unit is described."""
    return storage.join(work, "plan", f"{unit:06}.json")


def record_uri(work: str, unit: int) -> str:
    """Where the record of a unit stands; with it, the unit is done."""
    return storage.join(work, "units", f"{unit:06}.json")


def finished_units(work: str) -> set[int]:
    """Units with a record."""
    names = storage.children(storage.join(work, "units"))
    return {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}


def publish_faults(uri: str, faults: list[dict[str, str]]) -> None:
    """List the images that are left out, with the reasons."""
    columns = pa.schema([("key", pa.string()), ("fault", pa.string())])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(faults, columns), buffer)
    storage.publish(uri, buffer.getvalue().to_pybytes())
