"""Fixtures that cost seconds and are shared by the whole session."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from helpers import write_images
from s3_helpers import BUCKET

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster for this process alone, on loopback
os.environ.setdefault("RAY_worker_niceness", "0")  # as the jobs do
os.environ.pop("MLFLOW_TRACKING_URI", None)

CPUS = 4  # more than there may be: lets four workers and the data tasks start on a small machine


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for all tests that need one."""
    import ray

    from pipelines.runtime import cluster

    cluster.silence_logging()
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


@pytest.fixture(scope="session")
def dataset_uri(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared dataset of 150 training and 20 validation images with 128 px masks."""
    from pipelines.prepare.config import PrepareConfig
    from pipelines.prepare.run import prepare_dataset

    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder / "train", {"apple": 70, "pear": 80})
    write_images(folder / "val", {"apple": 10, "pear": 10}, first=1000)
    return prepare_dataset(
        PrepareConfig(
            source=str(folder),
            output=str(tmp_path_factory.mktemp("dataset") / "d"),
            sides=(128,),
            row_group_rows=16,
            rows_per_shard=64,
        )
    )


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Any]:
    """An S3 server on loopback that can fail, with an empty bucket."""
    import s3fs

    from benchmarks.s3_server import serving
    from pipelines import storage

    with serving() as server:
        s3fs.S3FileSystem.clear_instance_cache()  # of a server before
        with suppress(FileExistsError):  # moto keeps buckets for the whole process
            storage.filesystem("s3://x")[0].mkdir(BUCKET)
        yield server


@pytest.fixture
def s3(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server without faults and requests, hardly any wait before a new try."""
    from pipelines import storage
    from pipelines.storage import objects

    monkeypatch.setattr(objects, "FIRST_WAIT_S", 0.01)
    s3_server.faults, s3_server.requests = [], []
    yield s3_server
    s3_server.faults = []
    storage.remove(f"s3://{BUCKET}/t")


@pytest.fixture
def serially(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks of `prepare` one after the other in this process: no cluster, no start-up."""
    from dataset_helpers import run_serially

    run_serially(monkeypatch)
