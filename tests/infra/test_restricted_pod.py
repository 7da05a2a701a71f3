"""What a pod may do, imitated with namespaces: user 1000, no capabilities, a read-only root."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

# Everything is read-only but /tmp and /dev/shm; /srv is the image's /app.
SCRIPT = """
set -eu
mount --make-rprivate /
mount --rbind / "$POD"
mount --bind "$APP" "$POD/srv"
mount -o remount,bind,ro "$POD"
mount -o remount,bind,ro "$POD/srv"
mount -t proc proc "$POD/proc"
mount -t tmpfs tmpfs "$POD/tmp"
mount -t tmpfs tmpfs "$POD/dev/shm"
chmod 1777 "$POD/tmp" "$POD/dev/shm"
if [ -n "$CLOSED" ]; then # where this machine's Python lies is closed to others: not so in an image
  mount -t tmpfs -o mode=755 tmpfs "$POD$CLOSED"
  mkdir -p "$POD$BASE"
  mount --bind "$BASE" "$POD$BASE"
fi
exec chroot "$POD" setpriv --reuid=1000 --regid=1000 --clear-groups --bounding-set=-all \\
  --inh-caps=-all --no-new-privs env -i HOME=/tmp PATH="$BIN:/usr/bin:/bin" PYTHONPATH=/srv \\
  MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false sh -c "cd /srv && $COMMAND"
"""
TRAIN = (
    "! touch /srv/x 2>/dev/null && ! touch /etc/x 2>/dev/null && test $(id -u) = 1000"
    " && grep -q '^CapEff:.*0000000000000000$' /proc/self/status"
    " && python jobs/pretrain.py --store /tmp/store --steps 2 --batch-size 8 --bottleneck 16"
    " --checkpoint-every 2 --log-every 1 --validation-images 4 --summary /tmp/summary.json 1>&2"
    " && cat /tmp/summary.json"
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    os.getuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")),
    reason="needs root to give its rights up",
)
def test_a_training_runs_in_a_restricted_pod(tmp_path: Path) -> None:
    app, pod = tmp_path / "app", tmp_path / "pod"
    pod.mkdir()
    for name in ("ce_model", "pipelines", "jobs", "configs"):  # what the image copies
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    base = Path(sys.base_prefix)
    closed = [p for p in (base, *base.parents) if not p.stat().st_mode & 0o001]
    environment = {
        **os.environ, "POD": str(pod), "APP": str(app), "BASE": str(base), "COMMAND": TRAIN,
        "BIN": str(Path(sys.executable).parent), "CLOSED": str(closed[-1]) if closed else "",
    }  # fmt: skip
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["steps"] == 2
