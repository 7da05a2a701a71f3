"""Preparation and training over several machines, one of which is cut off and comes back."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from helpers import ROOT, write_images
from network_helpers import Machine, needs_namespaces, network

from benchmarks.local_server import process
from pipelines.models import checkpoint

HOSTS = ROOT / "infra" / "hosts"
STEPS = 120
LONGEST = 600.0  # seconds that a machine or a run may take for one thing
# One CPU each, so that two workers of a training cannot share a machine.
SIZE = ["--num-cpus=1", "--object-store-memory=150000000"]


def wait_for(seen: Callable[[], object], running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LONGEST
    while not seen():
        assert running.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.5)


class Cluster:
    """Machines that `head.sh` and `join.sh` make into one."""

    def __init__(self, machines: dict[str, Machine], folder: Path) -> None:
        self.machines, self.folder = machines, folder
        self._running = ExitStack()
        self._joined = 0

    def __enter__(self) -> "Cluster":
        try:
            self.start("head", ["sh", str(HOSTS / "head.sh"), *SIZE])
            for name in list(self.machines)[1:]:
                self.join(name)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def environment(self, name: str) -> dict[str, str]:
        return {
            "NODE_IP": self.machines[name].address,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": "head:6379",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
        }

    def join(self, name: str) -> None:
        self.start(name, ["sh", str(HOSTS / "join.sh"), "head:6379", *SIZE])

    def start(self, name: str, script: list[str]) -> None:
        self._joined += 1
        log = self.folder / f"{name}-{self._joined}.log"
        command = self.machines[name].command(script)
        environment = {**self.environment(name), "RAY_ADDRESS": ""}
        running = self._running.enter_context(process(command, log, **environment))
        wait_for(lambda: "Ray runtime started" in log.read_text(), running, log)

    @contextmanager
    def training(self, store: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """A job that prepares images and trains on them, and what it prints."""
        flags = {
            "source": self.folder / "photos", "store": store, "steps": STEPS, "batch-size": 8,
            "bottleneck": 8, "adversarial": 0, "num-workers": 2, "threads-per-worker": 1,
            "checkpoint-every": 10, "log-every": 5, "validate-every": STEPS,
            "validation-images": 4,
        }  # fmt: skip
        given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        job = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *given]
        log = self.folder / f"{store.name}.log"
        command = self.machines["head"].command(job)
        with process(command, log, **self.environment("head")) as running:
            yield running, log


def trains(machine: Machine) -> bool:
    found = [word for each in machine.processes() for word in each.cmdline()[:1]]
    return any(word.startswith("ray::RayTrainWorker") for word in found)


def newest(store: Path) -> checkpoint.Checkpoint | None:
    stages = list((store / "pretrain").glob("*"))
    return checkpoint.latest(str(stages[0])) if stages else None


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs_namespaces
def test_a_training_outlives_a_machine_that_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "train", {"apple": 40, "pear": 40})
    write_images(tmp_path / "photos" / "val", {"apple": 4, "pear": 4}, first=1000)
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    with (
        network(tmp_path, "head", "east", "west") as machines,
        Cluster(machines, tmp_path) as cluster,
    ):
        with cluster.training(disturbed) as (job, log):
            wait_for(lambda: (found := newest(disturbed)) and found.step >= 20, job, log)
            cut = next(name for name in ("east", "west") if trains(machines[name]))
            machines[cut].unplug()
            wait_for(lambda: not trains(machines[cut]), job, log)
            machines[cut].plug_in()
            cluster.join(cut)
            assert job.wait(LONGEST) == 0, log.read_text()[-4000:]
        with cluster.training(undisturbed) as (job, log):
            wait_for(lambda: trains(machines["east"]) or trains(machines["west"]), job, log)
            assert job.wait(LONGEST) == 0, log.read_text()[-4000:]
    mine, theirs = newest(disturbed), newest(undisturbed)
    assert mine is not None and theirs is not None
    assert mine.step == theirs.step == STEPS
    assert mine.state["totals"]["restarts"] >= 1 and theirs.state["totals"]["restarts"] == 0
    points = [each["step"] for each in mine.state["history"] if "loss/joint" in each["values"]]
    assert points == list(range(5, STEPS + 1, 5))  # no step twice, none left out
    weights, wanted = mine.tensors(), theirs.tensors()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights.items())
