"""The number of workers follows the cluster, within the sizes that share a batch out equally."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import ROOT
from ray.cluster_utils import Cluster
from ray.train import ScalingConfig

from pipelines.errors import UserError
from pipelines.models import checkpoint
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.fit import scaling_config
from pipelines.pretrain.workers import Workers
from pipelines.runtime import ray_internals
from pipelines.runtime.cluster import Resources


def test_a_range_is_read_and_its_sizes_divide_the_batch() -> None:
    assert Workers.parse(3) == Workers.parse("3") == Workers(3, 3)
    assert not Workers.parse(3).is_elastic
    workers = Workers.parse("1:4")
    assert workers == Workers(1, 4) and workers.is_elastic
    assert workers.sizes(64) == [1, 2, 4]
    for wrong in ("", "0", "1:", "2:1", "a", "1:2:3"):
        with pytest.raises(UserError, match="num_workers is"):
            Workers.parse(wrong)


def test_a_group_may_grow_beyond_the_cluster_but_not_begin_below_its_least() -> None:
    config = PretrainConfig(num_workers="2:4")
    on_gpus = scaling_config(config, Resources(cpus=8, gpus=2))
    assert on_gpus.num_workers == (2, 4) and on_gpus.use_gpu
    on_cpus = scaling_config(config, Resources(cpus=3, gpus=0))
    assert on_cpus.resources_per_worker == {"CPU": 1, "memory": 1}
    with pytest.raises(UserError, match="2:4; the cluster has 1 CPUs for them, beside one that"):
        scaling_config(config, Resources(cpus=2, gpus=0))
    with pytest.raises(UserError, match="the cluster has 1 GPUs for them: use --num-workers 1:4"):
        scaling_config(config, Resources(cpus=8, gpus=1))


@pytest.mark.parametrize(
    ("cpus", "size"), [([1], 0), ([2], 1), ([2, 2], 2), ([2, 3], 4), ([9], 4), ([4], 2)]
)
def test_the_size_is_the_largest_that_may_be_and_leaves_a_cpu_for_the_data(
    cpus: list[int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling = ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1})
    policy = ray_internals.elastic_policy(scaling, Workers(1, 4).sizes(64))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": sum(cpus)})
    nodes: Any = {str(at): {"CPU": count} for at, count in enumerate(cpus)}
    assert policy._count_possible_workers(nodes) == size


@pytest.fixture
def head() -> Iterator[Cluster]:
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield found
    found.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_group_shrinks_and_grows_with_its_nodes_and_takes_each_step_once(
    head: Cluster, dataset_uri: str, tmp_path: Path
) -> None:
    node = head.add_node(num_cpus=1)
    code = (
        "import runpy, sys; from pipelines.pretrain import fit; fit.RESIZE_AFTER_S = 5.0;"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = {
        "source": dataset_uri, "store": tmp_path, "steps": 5000, "batch-size": 4, "bottleneck": 8,
        "adversarial": 0, "num-workers": "1:2", "checkpoint-every": 5, "log-every": 5,
        "validate-every": 5000, "validation-images": 4, "threads-per-worker": 1,
    }  # fmt: skip
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    told = tmp_path / "told"
    with told.open("wb") as output:
        job = subprocess.Popen(
            [sys.executable, "-c", code, "jobs/pretrain.py", *given],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_ADDRESS": head.address},
        )  # fmt: skip

    def wait_for(sizes: list[int]) -> None:
        """Until so many groups of these sizes have been told, each with a step behind it."""
        deadline = time.monotonic() + 300
        while True:
            text = told.read_text()
            found = [int(line.split()[0]) for line in text.splitlines() if "workers now" in line]
            if found[: len(sizes)] == sizes:
                return
            assert job.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.5)

    try:
        wait_for([2])
        head.remove_node(node, allow_graceful=False)
        wait_for([2, 1])
        head.add_node(num_cpus=1)
        wait_for([2, 1, 2])
        job.send_signal(signal.SIGTERM)
        assert job.wait(120) == 130
    finally:
        job.kill()
    (stage,) = (tmp_path / "pretrain").iterdir()
    newest = checkpoint.latest(str(stage))
    assert newest is not None and newest.state["totals"]["restarts"] >= 2
    points = [each["step"] for each in newest.state["history"] if "loss/joint" in each["values"]]
    regular = [step for step in points if step % 5 == 0]
    assert regular == list(range(5, regular[-1] + 1, 5))  # none twice, none left out
    assert newest.state["totals"]["steps"] == newest.step
