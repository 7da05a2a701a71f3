"""Machines of a network, as namespaces of this one: own address, own ports, own /tmp/ray."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

NETWORK = "198.18.{}."  # for tests of networks, RFC 2544
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"
)
# `ip netns exec` gives each process a mount namespace of its own.
INSIDE = (
    'mount --bind "$0/hosts" /etc/hosts; mount --bind "$0/resolv.conf" /etc/resolv.conf;'
    ' mount --bind "$0/ray" /tmp/ray; exec "$@"'
)


@dataclass(frozen=True)
class Machine:
    """One namespace; the others find it by its name."""

    name: str
    namespace: str
    address: str
    folder: Path

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs the words in there."""
        inside = ["sh", "-c", INSIDE, str(self.folder)]
        return ["ip", "netns", "exec", self.namespace, *inside, *words]

    def processes(self) -> list[psutil.Process]:
        """All that runs in there."""
        found = []
        for pid in _ip("netns", "pids", self.namespace).split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def unplug(self) -> None:
        """Cut its cable: nothing says goodbye."""
        _ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        """Mend it."""
        _ip("link", "set", self.cable, "up")

    @property
    def cable(self) -> str:
        """The end of it that is in the bridge."""
        return f"{self.namespace}h"


@contextmanager
def network(folder: Path, *names: str) -> Iterator[dict[str, Machine]]:
    """Machines on one bridge, ended with all that runs in them."""
    number = os.getpid() % 1000
    bridge, start = f"ce{number}", NETWORK.format(number % 250)
    made = {
        name: Machine(name, f"{bridge}-{at}", f"{start}{at + 2}", folder / f"machine-{name}")
        for at, name in enumerate(names)
    }
    hosts = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in made.values())]
    Path("/tmp/ray").mkdir(exist_ok=True)
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{start}1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for each in made.values():
            (each.folder / "ray").mkdir(parents=True)
            (each.folder / "hosts").write_text("\n".join([*hosts, ""]))
            # gRPC asks a name server for what the file lacks, and waits: here nobody listens.
            (each.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            _wire(each, bridge, f"{start}1")
        yield made
    finally:
        for each in made.values():
            _end(each)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def _wire(machine: Machine, bridge: str, gateway: str) -> None:
    outer, inner = machine.cable, "eth0"
    _ip("netns", "add", machine.namespace)
    _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", machine.namespace)
    _ip("link", "set", outer, "master", bridge, "up")
    there = ["-n", machine.namespace]
    _ip(*there, "link", "set", "lo", "up")
    _ip(*there, "address", "add", f"{machine.address}/24", "dev", inner)
    _ip(*there, "link", "set", inner, "up")
    _ip(*there, "route", "add", "default", "via", gateway)


def _end(machine: Machine) -> None:
    with suppress(subprocess.CalledProcessError):  # it was not made
        left = machine.processes()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        for _ in range(20):  # children that began meanwhile
            if not machine.processes():
                break
            time.sleep(0.1)
        _ip("netns", "del", machine.namespace)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout
