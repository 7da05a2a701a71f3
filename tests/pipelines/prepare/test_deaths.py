"""Prepare under SIGKILL of its workers and of its driver, and on a full disk. Slow."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from dataset_helpers import files_of
from helpers import ROOT, end_orphans, write_images
from ray.cluster_utils import Cluster

from pipelines.data import manifest
from pipelines.errors import UserError
from pipelines.prepare import plan
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
KILLS = 20
FLAGS = ["--sides", "64", "--rows-per-shard", "64", "--row-group-rows", "32"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, {"apple": 600, "pear": 600})
    return folder


@pytest.fixture(scope="module")
def unbroken(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "d"
    job = start_job(pictures, output)
    assert job.wait(600) == 0
    return output


def start_job(source: Path, output: Path, cpus: int = 2) -> subprocess.Popen[bytes]:
    """`jobs/prepare.py` on a cluster of its own with that many workers."""
    code = (
        "import sys, ray; from pipelines.runtime import cluster; cluster.silence_logging();"
        f"ray.init(address='local', num_cpus={cpus}, include_dashboard=False,"
        " log_to_driver=False, logging_level='ERROR', object_store_memory=200_000_000);"
        "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = ["--source", str(source), "--output", str(output), *FLAGS]
    return subprocess.Popen(
        [sys.executable, "-c", code, "jobs/prepare.py", *flags],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def config(source: Path, output: Path) -> PrepareConfig:
    return PrepareConfig(
        source=str(source), output=str(output), sides=(64,), rows_per_shard=64, row_group_rows=32
    )


def count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def is_busy(process: psutil.Process) -> bool:
    """Whether it runs a task of Ray Data right now."""
    try:
        return any(word.startswith("ray::Map") for word in process.cmdline()[:1])
    except psutil.Error:  # it has ended meanwhile
        return False


@contextmanager
def killing_workers(rng: random.Random, most: int) -> Iterator[list[int]]:
    """SIGKILL busy task processes of this cluster at random instants."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < most and not over.wait(rng.uniform(0.02, 0.6)):
            busy = [p for p in psutil.Process().children(recursive=True) if is_busy(p)]
            if busy:
                victim = rng.choice(busy)
                victim.kill()
                killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_killed_workers_lose_nothing_and_repeat_nothing(
    ray_cluster: None,
    pictures: Path,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "UNIT_PIECES", 60)
    rng = random.Random(0)
    killed = 0
    for attempt in range(4 * KILLS):
        output = tmp_path / str(attempt)
        with killing_workers(rng, most=3) as victims:  # Ray tries a task four times
            prepare_dataset(config(pictures, output))
        killed += len(victims)
        assert files_of(output) == files_of(unbroken)
        if killed >= KILLS:
            break
    assert killed >= KILLS


def test_a_driver_killed_again_and_again_ends_with_the_same_dataset(
    pictures: Path, unbroken: Path, tmp_path: Path
) -> None:
    output = tmp_path / "d"
    work = output / "_work"  # where every file is older than the commit
    rng = random.Random(1)
    kills = 0
    while kills < 10:
        wanted = count_files(work) + rng.randint(1, 12)
        job = start_job(pictures, output)
        while job.poll() is None and count_files(work) < wanted:
            time.sleep(0.002)
        if job.poll() is not None:
            break  # there was less left to do than it had to write
        children = psutil.Process(job.pid).children(recursive=True)
        job.send_signal(signal.SIGKILL)
        job.wait()
        kills += 1
        end_orphans(children)
        with pytest.raises(UserError, match="not a prepared dataset"):
            manifest.read_manifest(str(output))
    assert kills >= 3
    assert start_job(pictures, output).wait(600) == 0
    assert files_of(output) == files_of(unbroken)
    assert not work.exists()


def test_a_killed_raylet_takes_nothing_with_it(
    pictures: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Two nodes with work; one is killed at a random instant, another one joins. Three times."""
    rng = random.Random(2)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        kills = 0
        for attempt in range(3):
            output = tmp_path / str(attempt)
            job = subprocess.Popen(
                [sys.executable, "jobs/prepare.py", "--source", str(pictures), "--output",
                 str(output), *FLAGS],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": cluster.address},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            wanted = rng.randint(1, 12)
            while job.poll() is None and count_files(output) < wanted:
                time.sleep(0.002)
            if job.poll() is None:
                (raylet,) = nodes.pop(0).all_processes["raylet"]
                os.kill(raylet.process.pid, signal.SIGKILL)
                nodes.append(cluster.add_node(num_cpus=1))
                kills += 1
            _, errors = job.communicate(timeout=600)
            assert job.returncode == 0, errors
            assert files_of(output) == files_of(unbroken)
        assert kills >= 2
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("workers", [1, 8])
def test_the_number_of_workers_changes_no_byte(
    workers: int, pictures: Path, unbroken: Path, tmp_path: Path
) -> None:
    assert start_job(pictures, tmp_path / "d", cpus=workers).wait(600) == 0
    assert files_of(tmp_path / "d") == files_of(unbroken)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of the dataset."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of limited size needs the right to mount one")
    yield disk
    # Lazily: Parquet files that were read stay open in a cache of this process.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_fails_the_job_and_room_lets_it_go_on(
    serially: None, pictures: Path, unbroken: Path, small_disk: Path
) -> None:
    output = small_disk / "d"
    with pytest.raises(UserError, match="No space left on device"):
        prepare_dataset(config(pictures, output))
    with pytest.raises(UserError, match="not a prepared dataset"):
        manifest.read_manifest(str(output))
    assert not list(output.glob("**/.*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    prepare_dataset(config(pictures, output))
    assert files_of(output) == files_of(unbroken)
