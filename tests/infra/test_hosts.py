"""Scripts for several machines: what they refuse, and how they call Ray."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

HOSTS = ROOT / "infra" / "hosts"
ECHO = '#!/bin/sh\necho "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH $RAY_JOB_STOP_WAIT_TIME_S $*"\n'


def run(script: str, *words: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A script with a Python that only says how it was called."""
    if not (folder / "python").exists():
        (folder / "python").write_text(ECHO)
        (folder / "python").chmod(0o755)
    (folder / "infra" / "hosts").mkdir(parents=True, exist_ok=True)
    copy = folder / "infra" / "hosts" / script
    copy.write_text((HOSTS / script).read_text())
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **more}
    return subprocess.run(
        ["sh", copy, *words], env=environment, capture_output=True, text=True, timeout=60
    )


def test_head_makes_a_token_that_workers_join_with(tmp_path: Path) -> None:
    token = tmp_path / "etc" / "token"
    head = run("head.sh", folder=tmp_path, RAY_AUTH_TOKEN_PATH=str(token), NODE_IP="10.0.0.1")
    assert head.returncode == 0, head.stderr
    assert f"token {token} 60 -m infra.local.start_ray start --head --block" in head.stdout
    assert "--node-ip-address=10.0.0.1" in head.stdout
    assert "--dashboard-host=127.0.0.1" in head.stdout
    assert len(token.read_text()) == 64 and token.stat().st_mode & 0o777 == 0o600
    kept = token.read_text()
    run("head.sh", folder=tmp_path, RAY_AUTH_TOKEN_PATH=str(token))
    assert token.read_text() == kept
    worker = run(
        "join.sh", "head:6379", "--num-cpus=4", folder=tmp_path, RAY_AUTH_TOKEN_PATH=str(token)
    )
    assert worker.stdout.endswith("--num-cpus=4\n")
    assert (
        f"token {token} 60 -m infra.local.start_ray start --address=head:6379 --block"
        in worker.stdout
    )


@pytest.mark.parametrize(("mode", "message"), [(None, "cannot be read"), (0o644, "read by others")])
def test_a_worker_without_a_safe_token_does_not_join(
    mode: int | None, message: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    if mode is not None:
        token.write_text("secret")
        token.chmod(mode)
    done = run("join.sh", "head:6379", folder=tmp_path, RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 1 and message in done.stderr and done.stdout == ""


def test_slurm_asks_for_a_job() -> None:
    done = subprocess.run(["bash", HOSTS / "slurm.sbatch"], capture_output=True, text=True)
    assert done.returncode == 2 and "no job" in done.stderr
