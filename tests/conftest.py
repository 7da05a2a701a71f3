"""Fixtures that cost seconds and are shared by the whole session."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster for this process alone, on loopback
os.environ.pop("MLFLOW_TRACKING_URI", None)

CPUS = 4  # more than there may be: lets four workers and the data tasks start on a small machine


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for all tests that need one."""
    import ray

    from pipelines import cluster

    cluster.quieten()
    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=400_000_000,
    )
    yield
    ray.shutdown()


def end_orphans(processes: list[psutil.Process]) -> None:
    """End what a killed driver leaves behind: Ray's agents notice its death after a minute."""
    for process in psutil.wait_procs(processes, timeout=3)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def mlflow_server_command(folder: Path, backend: str, port: int) -> list[str]:
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", backend,
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip


def wait_until_serving(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"nobody answers at {url}: {log.read_text()}"
            time.sleep(0.5)


def draw_picture(number: int, height: int, width: int) -> np.ndarray:
    """A smooth, coloured picture that no other number gives: uint8 (H, W, 3) RGB."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_pictures(folder: Path, classes: dict[str, int], first: int = 0) -> None:
    """Class folders with that many JPEG pictures each."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            picture = draw_picture(first, 150 + first % 7, 160 + first % 11)
            path = str(folder / name / f"{first:04d}.jpg")
            assert cv2.imwrite(path, picture[..., ::-1])
            first += 1


@pytest.fixture(scope="session")
def dataset_uri(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared dataset of 150 training and 20 validation pictures with 128 px masks."""
    from pipelines import prepare
    from pipelines.prepare import PrepareConfig

    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "train", {"apple": 70, "pear": 80})
    write_pictures(folder / "val", {"apple": 10, "pear": 10}, first=1000)
    return prepare.run(
        PrepareConfig(
            source=str(folder),
            output=str(tmp_path_factory.mktemp("dataset") / "d"),
            sides=(128,),
            row_group_rows=16,
            rows_per_shard=64,
        )
    )


@pytest.fixture
def serially(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks of `prepare` one after the other in this process: no cluster, no start-up."""
    import importlib

    from pipelines import cluster
    from pipelines.errors import UserError

    def one_by_one(what: str, items: Any, task: Any) -> None:
        for item in items:
            try:
                task(dict(item))
            except OSError as error:
                raise UserError(f"{what} failed: {error}") from None

    for name in ("run", "sidecars"):  # `prepare.run` is also the name of a function
        module = importlib.import_module(f"pipelines.prepare.{name}")
        monkeypatch.setattr(module, "run_tasks", one_by_one)
    monkeypatch.setattr(cluster, "connected", nullcontext)
