"""Schedules without Kubernetes: the units are units, and call the sweep as the manifests do."""

import re
import shutil
import subprocess

import pytest
from helpers import ROOT

INFRA = ROOT / "infra"
UNITS = sorted((INFRA / "systemd").iterdir())
SWEEP = (INFRA / "systemd" / "context-encoder-ablation.service").read_text()


def test_every_schedule_calls_the_same_sweep() -> None:
    for entry in (SWEEP, (INFRA / "crontab").read_text()):
        assert "jobs/ablate.py --config configs/ablation_nightly.yaml" in entry
        assert "--tick nightly" in entry


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_units_are_units() -> None:
    """Everything but what only the machine has: the files under /opt."""
    command = ["systemd-analyze", "verify", "--man=no", *map(str, UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    known = re.compile(r"is not executable: No such file|/lib/systemd/|/usr/lib/systemd/")
    problems = [line for line in done.stderr.splitlines() if not known.search(line)]
    assert not problems


def test_the_service_can_join_the_ray_of_its_machine() -> None:
    """A driver needs the sockets and the session folder under /tmp/ray of whoever runs Ray."""
    assert "\nPrivateTmp=true" not in SWEEP
    (writable,) = re.findall(r"^ReadWritePaths=(.*)$", SWEEP, re.MULTILINE)
    assert "/tmp" in writable.split()  # ProtectSystem=strict makes it read-only


def test_the_service_has_a_home_that_it_can_write() -> None:
    """Ray keeps its token there, and a Ray that cannot write it does not start."""
    assert "\nProtectSystem=strict\n" in SWEEP
    (home,) = re.findall(r"^Environment=HOME=(.*)$", SWEEP, re.MULTILINE)
    (writable,) = re.findall(r"^ReadWritePaths=(.*)$", SWEEP, re.MULTILINE)
    assert home in writable.split()


def test_the_head_can_make_its_token() -> None:
    unit = (INFRA / "systemd" / "context-encoder-head.service").read_text()
    (token,) = re.findall(r"RAY_AUTH_TOKEN_PATH:-(.*)}", (INFRA / "hosts" / "head.sh").read_text())
    (writable,) = re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE)
    assert f"-{token.rpartition('/')[0]}" in writable.split()
