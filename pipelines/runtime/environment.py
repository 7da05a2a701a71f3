"""Settings of others in the environment: each is used, or refused or overruled with a word."""

import os
import re
import secrets
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from pipelines.errors import UserError
from pipelines.runtime.progress import plain_console

SOCKET_BYTES = 107  # of a socket's path on Linux, 103 elsewhere
# What Ray puts after its folder: ray/session_YYYY-MM-DD_HH-MM-SS_MICROS_PID/sockets/plasma_store
SESSION_BYTES = len("/ray/session_2026-11-28_16-11-32_123456_1234567/sockets/plasma_store")
COPIES = "working_dir_files"  # in the path of what `ray job submit --working-dir` uploads
TEMPORARY_BYTES = 200_000_000  # for Ray's logs, and downloads
NO = ("0", "false", "no", "off")


@cache
def tell_once(text: str) -> None:
    """Print a line, once in this process."""
    plain_console(soft_wrap=True).print(text)


def ray_address() -> str | None:
    """RAY_ADDRESS, if it can be used; None: start a cluster here.

    Raises:
        UserError: it is an address of another protocol of Ray.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # an environment file may set it to nothing
        return None
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS is '{address}', the address of Ray's client protocol, through which "
            "nothing can be trained: on a node of the cluster use RAY_ADDRESS=HOST:6379 (or auto), "
            "from elsewhere submit the job with ray job submit --address http://HOST:8265"
        )
    if re.match(r"https?://", address):
        raise UserError(
            f"RAY_ADDRESS is '{address}', the dashboard, which takes submitted jobs only: give it "
            "to ray job submit --address, and unset RAY_ADDRESS to start a cluster here, or use "
            "RAY_ADDRESS=HOST:6379 (or auto) on a node of the cluster"
        )
    return address


def require_temporary_folder() -> None:
    """Refuse, before Ray starts here, a folder for its sockets that cannot hold them.

    Raises:
        UserError: its path is too long, or nothing can be written there.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    limit = SOCKET_BYTES if sys.platform == "linux" else SOCKET_BYTES - 4
    length = len(os.fsencode(folder)) + SESSION_BYTES
    if length > limit:
        raise UserError(
            f"{name} is '{folder}', too long for Ray's sockets, whose paths would have {length} "
            f"bytes of at most {limit}: set RAY_TMPDIR=/tmp, or another folder of a short name"
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"{name} is '{folder}', where nothing can be written: set RAY_TMPDIR=/tmp")
    free = shutil.disk_usage(folder).free
    if free < TEMPORARY_BYTES:
        tell_once(
            f"warning: {name} is '{folder}', which has {free / 1e6:.0f} MB free; Ray's logs and "
            "downloads lie there: set RAY_TMPDIR (and TMPDIR) to a larger one"
        )


def ensure_token() -> None:
    """Give a cluster started here a token where HOME, in which Ray keeps one, cannot be written."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        folder = Path.home() / ".ray"
        if not (folder / "auth_token").exists():
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where HOME is
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def require_lasting(flag: str, place: str) -> None:
    """Refuse to write into the copy of a working directory that Ray keeps for a submitted job.

    Raises:
        UserError: a relative path there, whose files are lost with the cluster, and which the same
            command would not find again once any file of the directory has changed.
    """
    here = Path.cwd()
    if "://" in place or Path(place).expanduser().is_absolute() or COPIES not in here.parts:
        return
    raise UserError(
        f"{flag} is '{place}', a relative path, which in a submitted job lies in Ray's temporary "
        f"copy of the working directory ({here}): give a place that outlives the job, such as "
        f"--{flag} s3://BUCKET/PREFIX or an absolute path that all nodes share"
    )


def require_train_v2() -> None:
    """Refuse the switch back to the old Ray Train, which hangs with what we give it.

    Raises:
        UserError: it is set.
    """
    value = os.environ.get("RAY_TRAIN_V2_ENABLED", "1")
    if value.strip().lower() in NO:
        raise UserError(
            f"RAY_TRAIN_V2_ENABLED is '{value}'; training needs Ray Train V2, the default: unset it"
        )


def threads_per_worker(requested: int | None) -> int | None:
    """CPU threads of a training process: the flag, else OMP_NUM_THREADS; None: all CPUs it has."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if requested is not None or not value.isdecimal() or int(value) < 1:
        return requested
    tell_once(
        f"OMP_NUM_THREADS is {value}: each training process computes with so many threads; "
        "--threads-per-worker says otherwise"
    )
    return int(value)


def tell_hidden_gpus() -> None:
    """Say that GPUs are there and not used, because an empty CUDA_VISIBLE_DEVICES hides them."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "none", "NoDevFiles")
    if hidden and Path("/dev/nvidia0").exists():
        value = os.environ["CUDA_VISIBLE_DEVICES"]
        tell_once(f"CUDA_VISIBLE_DEVICES is '{value}': no GPU of this machine is used")
