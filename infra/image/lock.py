"""Write the lock of the image: every package that constraints.txt leads to, with its sha256.

$ python -m infra.image.lock --output infra/image/cpu.lock
$ python -m infra.image.lock --output infra/image/cuda.lock

pip resolves and names the wheels that it would install on this machine, and nothing is installed:
run it on the platform, with the Python and with the index settings of the build. Which torch it
finds, for CPUs or for CUDA, is decided by those settings and told here. Review the lock as code.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
EXTRAS = "server,export,backbones"  # MLflow's server, exports, encoders other than alexnet
BUILD = "setuptools"  # with which the image installs this project itself


def resolve() -> dict[str, Any]:
    """pip's report of what it would install."""
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
        "--only-binary=:all:", "--report=-", f"--constraint={ROOT / 'constraints.txt'}",
        f"{ROOT}[{EXTRAS}]", BUILD,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit("error: pip cannot resolve constraints.txt here; its message is above")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Package(NamedTuple):
    """One wheel; the version is named without its local part (`+cpu`): the hash tells which."""

    name: str
    version: str
    sha256: str


def packages(report: dict[str, Any]) -> list[Package]:
    """What the report would install, sorted; this project itself is left out."""
    found = []
    for each in report["install"]:
        where = each["download_info"]
        if "dir_info" in where:  # the checkout
            continue
        digest = where.get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            sys.exit(f"error: no sha256 is known of {where['url']}: the index has to tell it")
        name = str(each["metadata"]["name"]).lower().replace("_", "-")
        version = str(each["metadata"]["version"]).partition("+")[0]
        found.append(Package(name, version, digest))
    return sorted(found)


def lock(found: list[Package]) -> str:
    """As pip reads it with --require-hashes."""
    lines = [f"{each.name}=={each.version} --hash=sha256:{each.sha256}" for each in found]
    return "\n".join(["# python -m infra.image.lock", *lines, ""])


def main() -> None:
    """Resolve, write, say what torch was found."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m infra.image.lock")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    found = packages(resolve())
    args.output.write_text(lock(found))
    is_cuda = any(each.name.startswith("nvidia-") for each in found)
    print(f"{args.output}: {len(found)} packages, torch for {'CUDA' if is_cuda else 'CPUs'}")


if __name__ == "__main__":
    main()
