"""A PostgreSQL server with the databases of the tracking server."""

import os
import pwd
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from helpers import ROOT, postgres_folder
from network_helpers import Machine

from benchmarks.local_server import free_port, process

DATABASES = ROOT / "infra" / "kubernetes" / "platform" / "databases.sh"


@contextmanager
def postgres(
    folder: Path, superuser: str, mlflow: str, machine: Machine | None = None
) -> Iterator[dict[str, str]]:
    """A server with what databases.sh makes; the environment of clients.

    It listens on loopback, or, on a machine of its own, as its image does.
    """
    programs = postgres_folder()
    assert programs is not None
    user = pwd.getpwnam("postgres")
    data, port = folder / "data", str(free_port() if machine is None else 5432)
    folder.mkdir()
    os.chown(folder, user.pw_uid, user.pw_gid)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o755)
    alone = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    (folder / "password").write_text(superuser)
    os.chown(folder / "password", user.pw_uid, user.pw_gid)
    subprocess.run(
        [*alone, programs / "initdb", "-D", data, "--auth=scram-sha-256", "-U", "postgres",
         f"--pwfile={folder}/password"], check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    here = {"PGHOST": "127.0.0.1", "PGPORT": port}
    command = [*alone, str(programs / "postgres"), "-D", str(data), "-p", port]
    command += ["-c", f"unix_socket_directories={folder}"]
    if machine is None:
        command += ["-c", "listen_addresses=127.0.0.1"]
    else:
        command += ["-c", "listen_addresses=*"]
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")  # as its image has it

    def there(words: Sequence[str | Path]) -> list[str]:
        found = [str(word) for word in words]
        return found if machine is None else machine.command(found)

    with process(there(command), folder / "log") as server:
        admin = {**os.environ, **here, "PGUSER": "postgres", "PGPASSWORD": superuser}
        for _ in range(120):
            if not subprocess.run(there([programs / "pg_isready", "-q"]), env=admin).returncode:
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        admin["MLFLOW_PASSWORD"] = mlflow
        subprocess.run(there(["sh", DATABASES]), env=admin, check=True, timeout=60)
        yield {**here, "PGUSER": "mlflow", "PGPASSWORD": mlflow}
