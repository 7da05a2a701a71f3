"""What a user would take instead of `prepare`: the same files to JPEGs of the same size.

    datasets    Hugging Face's `datasets.map` with Pillow, into its Arrow files
    streaming   MosaicML's MDSWriter in a process per core, with Pillow, one index at the end

Both do less than the job: no shuffle, no masks, no search for equal images, no checksum of what is
written, no resume. Each runs in a process of its own; imports are not counted.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image, ImageOps

from benchmarks.loader import streaming_base

SIDE, QUALITY = 256, 90  # as prepare's defaults
TIMEOUT_S = 3600.0


def shrunk(data: bytes) -> bytes:
    """An image as prepare stores it, by Pillow."""
    with Image.open(BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    shorter = min(image.size)
    if shorter > SIDE:
        width, height = (max(SIDE, round(side * SIDE / shorter)) for side in image.size)
        image = image.resize((width, height))
    out = BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def seconds_of(peer: Callable[[list[Path], Path, int], float], *arguments: object) -> float:
    """Seconds of a peer in a fresh process.

    Raises:
        RuntimeError: it died.
    """
    context = multiprocessing.get_context("spawn")
    inner, outer = context.Pipe()
    process = context.Process(target=_run, args=(outer, peer, arguments))
    process.start()
    outer.close()
    try:
        if not inner.poll(TIMEOUT_S):
            raise RuntimeError(f"{peer.__name__} did not end in {TIMEOUT_S:.0f} s")
        return float(inner.recv())
    except EOFError:
        raise RuntimeError(f"{peer.__name__} died; its message stands above") from None
    finally:
        process.join(10)
        process.kill()


def _run(answer: Connection, peer: Callable[..., float], arguments: tuple[object, ...]) -> None:
    answer.send(peer(*arguments))


def datasets_map(files: list[Path], folder: Path, cores: int) -> float:
    """Seconds of `datasets.map` over the files."""
    import datasets

    datasets.disable_progress_bars()
    began = time.perf_counter()
    source = datasets.Dataset.from_dict({"path": [str(file) for file in files]})
    stored = source.map(
        _mapped,
        num_proc=cores,
        features=datasets.Features(
            {"path": datasets.Value("string"), "image": datasets.Value("binary")}
        ),
        cache_file_name=str(folder / "map.arrow"),
    )
    assert len(stored) == len(files)
    return time.perf_counter() - began


def _mapped(row: dict[str, str]) -> dict[str, bytes]:
    return {"image": shrunk(Path(row["path"]).read_bytes())}


def streaming_writer(files: list[Path], folder: Path, cores: int) -> float:
    """Seconds of a process per core that writes MDS shards, and of joining their index."""
    streaming_base()
    context = multiprocessing.get_context("fork")
    began = time.perf_counter()
    parts = [
        context.Process(target=_write_mds, args=(files[n::cores], folder / f"{n}"))
        for n in range(cores)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    shards = []
    for n in range(cores):
        for shard in json.loads((folder / f"{n}" / "index.json").read_text())["shards"]:
            for name in ("raw_data", "zip_data"):
                if shard.get(name):
                    shard[name]["basename"] = f"{n}/{shard[name]['basename']}"
            shards.append(shard)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    seconds = time.perf_counter() - began
    assert sum(shard["samples"] for shard in shards) == len(files)
    return seconds


def _write_mds(files: list[Path], folder: Path) -> None:
    streaming = sys.modules["streaming.base"]  # from before the fork
    columns = {"key": "str", "image": "bytes"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for file in files:
            writer.write({"key": file.name, "image": shrunk(file.read_bytes())})


PEERS = {"datasets.map": datasets_map, "MDSWriter": streaming_writer}
