"""Servers that outlive the command which starts them: recorded, found again, ended exactly.

A process is named by its id and the time at which it began, so that a number that the system has
given to another process since is never taken for ours.
"""

import hashlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
BEGAN_WITHIN_S = 0.5  # precision of the time at which a process began
END_S = 45.0  # `ray start --block` drains its node for up to 30 s, then ends what is left
KILL_S = 5.0
LOG_LINES = 15


class ClusterError(Exception):
    """Something the user can fix: the message is all that is shown."""


@dataclass(frozen=True)
class Service:
    """One server: how to start it, and how to see that it serves."""

    name: str
    command: Sequence[str]
    settings: Mapping[str, str]
    """Variables of its own, beside those that this process has."""
    ports: Mapping[str, int]
    """Flag of the port -> its number, on loopback."""
    answers: Sequence[str]
    """URLs that answer with 200 once it serves."""

    @property
    def digest(self) -> str:
        """Equal for equal settings; what they are stays here, since a URI may hold a password.

        PATH is left out: it differs from terminal to terminal.
        """
        settings = {name: value for name, value in self.settings.items() if name != "PATH"}
        text = json.dumps([list(self.command), settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Running:
    """A server that was started, as the record has it."""

    name: str
    pid: int
    began: float
    command: list[str]
    digest: str
    """Of the service that it was started as."""

    def process(self) -> Any | None:
        """The process, or None where it has ended."""
        try:
            found = psutil.Process(self.pid)
            is_it = abs(found.create_time() - self.began) < BEGAN_WITHIN_S
            return found if is_it and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def read_record(path: Path) -> dict[str, Running]:
    """Name -> what was started under it; whether it still runs is another question."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {name: Running(**each) for name, each in found.items()}


def write_record(path: Path, running: Mapping[str, Running]) -> None:
    """Replace the record in one step; without any server there is none."""
    if not running:
        path.unlink(missing_ok=True)
        return
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps({name: asdict(r) for name, r in running.items()}, indent=2))
    os.replace(staged, path)


def require_free(service: Service) -> None:
    """Refuse to start beside whoever has one of the ports.

    Raises:
        ClusterError: names port, holder and flag.
    """
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    for flag, port in service.ports.items():
        holders = [c.pid for c in listening if c.laddr.port == port]
        if holders:
            raise ClusterError(
                f"port {port}, which {service.name} needs, is taken by {_describe(holders[0])}: "
                f"end that, or give another port with {flag} PORT"
            )


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:120]})"
    except psutil.Error:
        return f"process {pid}"


def launch(service: Service, log: Path) -> Running:
    """Start a server, whose output goes to a file.

    Raises:
        ClusterError: somebody has one of its ports.
    """
    require_free(service)
    with log.open("wb") as output:
        child = subprocess.Popen(
            service.command, env={**os.environ, **service.settings}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True, cwd=ROOT,
        )  # fmt: skip
    began = psutil.Process(child.pid).create_time()
    return Running(service.name, child.pid, began, list(service.command), service.digest)


def wait_until_serving(
    service: Service, running: Running, log: Path, token: str, *, wait_s: float
) -> None:
    """Return once all its URLs answer.

    Raises:
        ClusterError: it ended or did not answer in time; what it printed last is told.
    """
    deadline = time.monotonic() + wait_s
    while problem := first_unanswered(service, token):
        has_ended = running.process() is None
        if has_ended or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
            how = "has ended" if has_ended else f"{problem} after {wait_s:.0f} s"
            raise ClusterError("\n".join([f"{service.name} {how}; {log} ends with:", *lines]))
        time.sleep(0.5)


def first_unanswered(service: Service, token: str) -> str | None:
    """Why a server does not serve; None when it does."""
    return next(filter(None, (unanswered(url, token) for url in service.answers)), None)


def unanswered(url: str, token: str) -> str | None:
    """Why a URL does not answer with 200; None when it does."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return None
    except urllib.error.HTTPError as error:
        return f"answers {error.code} at {url}"
    except OSError as error:
        return f"does not answer at {url} ({error})"


def end(running: Running, tell: Callable[[str], None] = lambda text: None) -> None:
    """End a server and all it has started: SIGTERM, and SIGKILL for what is left."""
    first = running.process()
    if first is None:
        return
    members = _tree(first)
    with suppress(psutil.NoSuchProcess):
        first.terminate()
    deadline = time.monotonic() + END_S
    while members and time.monotonic() < deadline:
        for each in list(members):  # children that began meanwhile
            members |= _tree(each)
        members -= set(psutil.wait_procs(members, timeout=0.5)[0])
    if members:
        tell(
            f"{running.name}: {len(members)} processes did not end in {END_S:.0f} s and are killed"
        )
    for each in members:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(members, timeout=KILL_S)


def _tree(process: Any) -> set[Any]:
    try:
        return {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
