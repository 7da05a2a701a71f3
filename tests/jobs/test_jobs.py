"""The entry points as a user gives them: whole processes, killed and given again. Slow."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from dataset_helpers import files_of
from helpers import ROOT, end_orphans, write_images

from benchmarks.local_server import free_port, wait_until_serving
from pipelines.data import manifest
from pipelines.errors import UserError
from pipelines.models import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TINY = [
    "--steps", "20", "--checkpoint-every", "10", "--batch-size", "16", "--bottleneck", "64",
    "--log-every", "5", "--validation-images", "16", "--threads-per-worker", "1",
]  # fmt: skip


def start(job: str, *flags: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, f"jobs/{job}.py", *flags],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "token", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def pretrain(store: Path, *flags: str) -> tuple[dict[str, Any], str]:
    summary = store / "summary.json"
    code, out, err = finish(
        start("pretrain", "--store", str(store), "--summary", str(summary), *TINY, *flags)
    )
    assert code == 0, err
    assert out == ""
    return json.loads(summary.read_text()), err


def tensors_of(summary: dict[str, Any]) -> dict[str, Any]:
    stage, step = summary["checkpoint"].rsplit("/checkpoints/step-")
    return checkpoint.at_step(stage, int(step)).tensors()


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not list(folder.glob(pattern)):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_twenty_steps_equal_ten_a_killed_job_and_ten(tmp_path: Path) -> None:
    whole, screen = pretrain(tmp_path / "whole")
    noise = [line for line in screen.splitlines() if re.search("warn|ray::|INFO|WARNING", line)]
    assert [line.partition(" (")[0] for line in noise] == ["warning: the fillings"]
    interrupted = tmp_path / "interrupted"
    job = start("pretrain", "--store", str(interrupted), *TINY)
    wait_for("pretrain/*/checkpoints/step-00000010/state.json", interrupted, job)
    children = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert not list(interrupted.glob("pretrain/*/commit.json"))
    end_orphans(children)
    resumed, screen = pretrain(interrupted)
    assert "resumed at step 10" in screen
    assert resumed["restarts"] == 1
    first, second = tensors_of(whole), tensors_of(resumed)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert resumed["validation"] == whole["validation"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_one_message_and_the_same_command_goes_on(
    sent: signal.Signals, tmp_path: Path
) -> None:
    longer = ["--steps", "100"]  # the signal has to come before the end
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's `&`
    job = start("pretrain", "--store", str(tmp_path), *TINY, *longer)
    wait_for("pretrain/*/checkpoints/step-00000010/state.json", tmp_path, job)
    children = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(sent)
    code, out, err = finish(job)
    assert (code, out) == (130, "")
    assert (
        err.splitlines()[-1]
        == "interrupted: rerun the same command, and it resumes from what is finished"
    )
    (saved,) = re.findall(rf"^stopped by {sent.name} with a checkpoint of step (\d+)$", err, re.M)
    asked = f"{sent.name}: ending with a checkpoint of this step"
    told = [line for line in err.splitlines() if re.search("SIG[A-Z]|Traceback", line)]
    assert told == [asked, f"stopped by {sent.name} with a checkpoint of step {saved}"]
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert statuses(tmp_path) == ["KILLED"]
    _, screen = pretrain(tmp_path, *longer)
    assert re.findall(r"resumed at step (\d+)$", screen, re.M) == [saved]
    assert 10 <= int(saved) < 100  # what was done when the signal came
    assert statuses(tmp_path) == ["FINISHED"]  # in the same run


def statuses(store: Path) -> list[str]:
    """Of the training runs in a store's MLflow."""
    server = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiments = [found.experiment_id for found in server.search_experiments()]
    runs = server.search_runs(experiments, "tags.stage = 'pretrain'")
    return [run.info.status for run in runs]


@pytest.mark.parametrize("strategy", ["random_block", "random_region"])
def test_alexnet_trains_on_two_workers(strategy: str, tmp_path: Path) -> None:
    flags = ["--preset", "alexnet", "--strategy", strategy, "--num-workers", "2"]
    tiny = [flag for flag in TINY if flag not in ("--bottleneck", "64")]
    summary = tmp_path / "s.json"
    code, _, err = finish(
        start("pretrain", "--store", str(tmp_path), "--summary", str(summary), *tiny, *flags)
    )
    assert code == 0, err
    assert json.loads(summary.read_text())["strategy"] == strategy


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "/nowhere"], "source is '/nowhere'; there is no such folder"),
        (["--source", "{empty}"], "that folder is empty"),
        (["--batch-size", "9", "--num-workers", "2"], "multiple of num_workers 2"),
        (["--num-workers", "64", "--batch-size", "128"], "num_workers is 64; the cluster has"),
        (["--strategy", "randomregion"], "did you mean 'random_region'?"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_half_written(
    flags: list[str], message: str, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    given = [flag.format(empty=empty) for flag in flags]
    code, out, err = finish(start("pretrain", "--store", str(tmp_path / "store"), *given))
    assert code != 0
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in out + err
    assert not (tmp_path / "store" / "pretrain").exists()


def test_the_model_is_served_over_http(tmp_path: Path) -> None:
    summary, _ = pretrain(tmp_path)
    port = free_port()
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": summary["tracking_uri"],
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        "mlflow", "models", "serve", "-m", summary["model_uri"], "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_until_serving(f"http://127.0.0.1:{port}/ping", server, tmp_path / "serve.log")
        image = [[[[200, 10, 10]] * 128] * 128]
        mask = [[[int(32 <= r < 96 and 32 <= c < 96) for c in range(128)] for r in range(128)]]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": {"image": image, "mask": mask}}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.loads(response.read())["predictions"]
    finally:
        for process in family(psutil.Process(server.pid)):
            process.terminate()
        server.wait(30)
    assert len(answer["features"][0]) == 64
    assert answer["filled"][0][0][0] == [200, 10, 10]


@contextmanager
def head_node(folder: Path) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """A running Ray cluster on loopback that lets nobody in without its token."""
    (folder / "token").write_text("0123456789abcdef" * 4)
    dashboard = free_port()
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=3",
        "--object-store-memory=500000000", "--include-dashboard=true",
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    started = psutil.Process(head.pid)
    try:
        _wait_until_jobs_are_taken(env)
        yield env, started
    finally:
        ours = family(started)
        for process in ours:
            process.terminate()
        end_orphans(ours)
        head.wait(20)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started; none when it has ended."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def _wait_until_jobs_are_taken(env: dict[str, str]) -> None:
    deadline = time.monotonic() + 120
    command = ["ray", "job", "list"]
    while (
        listed := subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    ).returncode != 0:
        assert time.monotonic() < deadline, listed.stderr
        time.sleep(1)


def submit(env: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--working-dir", ".", "--", *entrypoint]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False
    )


def test_a_submitted_job_trains_and_nobody_gets_in_without_the_token(tmp_path: Path) -> None:
    flags = ["--store", str(tmp_path / "store"), *TINY]
    with head_node(tmp_path) as (env, _):
        intruder = submit({**env, "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "f" * 64}, "true")
        assert intruder.returncode != 0
        for entrypoint in (["python", "jobs/pretrain.py"], ["jobs/pretrain.py"]):
            summary = tmp_path / f"{len(entrypoint)}.json"
            done = submit(env, *entrypoint, *flags, "--summary", str(summary))
            assert done.returncode == 0, done.stdout + done.stderr
            assert json.loads(summary.read_text())["steps"] == 20


def test_a_killed_head_loses_nothing_that_was_prepared(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """The cluster's store of state dies under a submitted job; a new head, the same command."""
    write_images(tmp_path / "pictures", {"apple": 1500, "pear": 1500})
    prepare = [
        "python", "jobs/prepare.py", "--source", str(tmp_path / "pictures"), "--sides", "64",
        "--rows-per-shard", "64", "--row-group-rows", "32", "--output",
    ]  # fmt: skip
    output = tmp_path / "d"
    with head_node(tmp_path) as (env, head):
        unbroken = submit(env, *prepare, str(tmp_path / "unbroken"))
        assert unbroken.returncode == 0, unbroken.stdout + unbroken.stderr
        with ThreadPoolExecutor(1) as thread:
            broken = thread.submit(submit, env, *prepare, str(output))
            while len(list(output.glob("_work/*/shards/*.json"))) < 5:
                assert not broken.done(), broken.result().stdout
                time.sleep(0.002)
            (store,) = (p for p in head.children(recursive=True) if "gcs_server" in p.name())
            everything = family(head)
            killed = time.monotonic()
            store.kill()
            assert broken.result().returncode != 0
        _, alive = psutil.wait_procs(everything, timeout=120)
        record_testsuite_property("seconds until the old head was gone", time.monotonic() - killed)
        record_testsuite_property("processes that had to be ended", len(alive))
        end_orphans(alive)
    with pytest.raises(UserError, match="not a prepared dataset"):
        manifest.read_manifest(str(output))
    before = len(list(output.glob("_work/*/shards/*.json")))
    again = tmp_path / "again"
    again.mkdir()
    with head_node(again) as (env, _):
        record_testsuite_property("seconds until a new head answered", time.monotonic() - killed)
        resumed = submit(env, *prepare, str(output))
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert files_of(output) == files_of(tmp_path / "unbroken")
    assert "reading images" not in resumed.stdout  # all units were done
    # The last line of progress has the sum; a busy machine prints some on the way.
    written, all_of_them = (
        int(re.findall(r"writing shards \d+/\d+ +([\d,]+) images", shown)[-1].replace(",", ""))
        for shown in (resumed.stdout, unbroken.stdout)
    )
    assert before >= 5 and written < all_of_them
