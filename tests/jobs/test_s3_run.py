"""A whole run with everything in a bucket, against an S3 server on loopback. Slow."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import s3fs
from helpers import ROOT, end_orphans, write_images

from benchmarks.local_server import free_port, mlflow_server_command, process, wait_until_serving

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.timeout(1800)]
TINY = [
    "--steps", "20", "--checkpoint-every", "10", "--batch-size", "8",
    "--preset", "unet", "--strategy", "central",  # varied from the first step on, as a gate demands
    "--log-every", "10", "--validation-images", "4", "--threads-per-worker", "1",
]  # fmt: skip
GATES = "required: [inpainting]\nmin_seeds: 1\n"
EVALUATION = "tasks: [inpainting]\ninpainting: {strategies: [central], images: 4, baselines: []}\n"


@contextmanager
def server(command: list[str], url: str, folder: Path) -> Iterator[None]:
    log = folder / f"{command[2]}.log"
    with process(command, log) as started:
        wait_until_serving(url, started, log)
        yield


def job(name: str, *flags: str, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, f"jobs/{name}.py", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def done(process: subprocess.Popen[str]) -> str:
    shown, _ = process.communicate(timeout=900)
    assert process.returncode == 0, shown
    return shown


def test_prepare_train_killed_and_resumed_evaluate_promote(tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "train", {"apple": 12, "pear": 12})
    write_images(tmp_path / "photos" / "val", {"apple": 4, "pear": 4}, first=100)
    (tmp_path / "gates.yaml").write_text(GATES)
    (tmp_path / "evaluate.yaml").write_text(EVALUATION)
    bucket, tracking = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    port = bucket.rpartition(":")[2]
    env = {
        "AWS_ENDPOINT_URL": bucket, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_TRACKING_URI": tracking,
    }  # fmt: skip
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    database = f"sqlite:///{tmp_path}/server.db"
    mlflow = mlflow_server_command(tmp_path, database, int(tracking.rpartition(":")[2]))
    store, dataset = "s3://work/store", "s3://work/datasets/photos"
    with (
        server(moto, f"{bucket}/moto-api/", tmp_path),
        server(mlflow, f"{tracking}/health", tmp_path),
    ):
        fs = s3fs.S3FileSystem(endpoint_url=bucket, key="test", secret="test")
        fs.mkdir("work")
        photos = str(tmp_path / "photos")
        done(job("prepare", "--source", photos, "--output", dataset, "--sides", "128", env=env))
        flags = ["--source", dataset, "--store", store, *TINY]
        kill_after_checkpoint(job("pretrain", *flags, env=env), fs)
        cache = str(tmp_path / "cache")
        shown = done(job("pretrain", *flags, "--cache-folder", cache, env=env))
        assert "resumed at step 10" in shown
        assert f"shards are kept in {cache} of each node: at most 100.00 GB" in shown
        summary = committed(fs)
        reads = summary["reads"]
        assert reads["hits"] + reads["misses"] > 0 and "from the nodes' disks" in shown
        assert summary["steps"] == 20 and summary["model"].startswith(store)
        run_id = summary["tracking_run_id"]
        done(
            job("evaluate", "--config", str(tmp_path / "evaluate.yaml"), "--model", run_id,
                "--data", dataset, "--store", store, env=env)
        )  # fmt: skip
        gates = str(tmp_path / "gates.yaml")
        done(job("promote", "--run", run_id, "--gates", gates, "--store", store, env=env))
        shown = done(job("promote", "--explain", "models:/context-encoder@champion",
                         "--store", store, env=env))  # fmt: skip
        assert run_id in shown
        done(job("clean", "--store", store, env=env))
        assert len(fs.ls(f"{summary['checkpoint'].removeprefix('s3://').rpartition('/')[0]}")) == 1


def kill_after_checkpoint(process: subprocess.Popen[str], fs: Any) -> None:
    """SIGKILL once the checkpoint of step 10 is in the bucket."""
    deadline = time.monotonic() + 600
    pattern = "work/store/pretrain/*/checkpoints/step-00000010/state.json"
    while not (fs.invalidate_cache() or fs.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    end_orphans(children)
    assert not fs.glob("work/store/pretrain/*/commit.json")


def committed(fs: Any) -> dict[str, Any]:
    fs.invalidate_cache()
    (commit,) = fs.glob("work/store/pretrain/*/commit.json")
    summary: dict[str, Any] = json.loads(fs.cat_file(commit))
    return summary
