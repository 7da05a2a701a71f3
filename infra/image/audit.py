"""A bill of materials of the pinned packages, and what is known against them.

$ make audit
$ make audit ARGS="--requirements infra/image/cpu.lock --service osv"

cyclonedx-py writes the bill, pip-audit asks the service. pip-audit ends with 0 where the service
knows none of the packages, or a mirror answers in its place; here that is a failure.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VULNERABLE, UNKNOWN = 1, 2


def main() -> None:
    """Write, ask, tell; exit code 1 for a known vulnerability, 2 for what could not be audited."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m infra.image.audit")
    parser.add_argument("--requirements", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--sbom", type=Path, default=Path("sbom.cdx.json"), help="CycloneDX JSON")
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi")
    args = parser.parse_args()
    write_bill(args.requirements, args.sbom)
    text, code = verdict(*ask(args.requirements, args.service), args.service)
    print(text, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


def write_bill(requirements: Path, sbom: Path) -> None:
    """CycloneDX 1.6, validated against its schema by the tool itself."""
    command = ["cyclonedx-py", "requirements", str(requirements)]
    command += [f"--pyproject={ROOT / 'pyproject.toml'}", "--short-PURLs", "--output-reproducible"]
    command += [f"--output-file={sbom}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: no bill of materials of {requirements}: {last_line(done.stderr)}")
    print(f"{sbom}: {len(json.loads(sbom.read_text())['components'])} packages")


def ask(requirements: Path, service: str) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says of each package; nothing, and its last words, where it cannot ask."""
    command = ["pip-audit", f"--requirement={requirements}", "--no-deps", "--disable-pip"]
    command += ["--format=json", "--progress-spinner=off", f"--vulnerability-service={service}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"], ""
    except json.JSONDecodeError:
        return [], last_line(done.stderr)


def verdict(packages: list[dict[str, Any]], problem: str, service: str) -> tuple[str, int]:
    """The message, and the exit code; clean is only what the service knows and has nothing against.

    Args:
        packages: `name`, and `version` with `vulns`, or else `skip_reason`.
        problem: why there are none.
        service: that was asked.
    """
    if not packages:
        return f"error: not audited: the service {service} did not answer: {problem}", UNKNOWN
    skipped = [each for each in packages if "skip_reason" in each]
    lines = [
        f"{each['name']} {each['version']}: {found['id']}"
        f", fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for each in packages
        for found in each.get("vulns", [])
    ]
    if skipped:
        names = ", ".join(each["name"] for each in skipped[:5])
        lines.append(
            f"error: not audited: the service {service} does not know {len(skipped)} of "
            f"{len(packages)} packages ({names}{', ...' if len(skipped) > 5 else ''}): no network, "
            "or a mirror in its place? Nothing is known of these"
        )
        return "\n".join(lines), UNKNOWN
    if lines:
        return "\n".join([*lines, f"error: {len(lines)} known vulnerabilities"]), VULNERABLE
    return f"{len(packages)} packages, no known vulnerability", 0


def last_line(text: str) -> str:
    """Of an error message."""
    return (text.strip().splitlines() or ["no reason was given"])[-1][:300]


if __name__ == "__main__":
    main()
