"""The image: its lock pins by checksum, and its steps find what they copy."""

import re
import shlex
import tomllib

import pytest
from helpers import ROOT

from infra.image import audit, lock

DOCKERFILE = (ROOT / "infra" / "image" / "Dockerfile").read_text()


def package(name: str, version: str, **where: object) -> dict[str, object]:
    return {"metadata": {"name": name, "version": version}, "download_info": where}


def test_a_lock_names_every_package_with_its_checksum() -> None:
    archive = {"hashes": {"sha256": "ab" * 32}}
    report = {
        "install": [
            package("torch", "2.13.0+cpu", url="u", archive_info=archive),
            package("Foo_Bar", "1", url="u", archive_info=archive),
            package("context-encoder-pipeline", "0.1.0", url="file:///x", dir_info={}),
        ]
    }
    found = lock.packages(report)
    digest = f"--hash=sha256:{'ab' * 32}"
    assert lock.lock(found).splitlines()[1:] == [f"foo-bar==1 {digest}", f"torch==2.13.0 {digest}"]


def test_a_package_without_a_checksum_is_refused() -> None:
    with pytest.raises(SystemExit, match="no sha256 is known of u"):
        lock.packages({"install": [package("x", "1", url="u", archive_info={})]})


def test_the_lock_has_all_that_jobs_may_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["optional-dependencies"]) - {"dev", "bench"}
    assert set(lock.EXTRAS.split(",")) == wanted


def test_the_image_copies_what_there_is_and_all_that_jobs_import() -> None:
    copied = [shlex.split(line)[:-1] for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.M)]
    names = {name for words in copied for name in words}
    for name in names - {"infra/image/${LOCK}.lock"}:
        assert (ROOT / name).exists(), name
    assert {"ce_model", "pipelines", "jobs", "configs", "pyproject.toml"} <= names


def test_the_image_is_pinned_compiles_and_runs_as_nobody_special() -> None:
    assert re.search(r"^FROM python:3\.11\.\d+-\S+$", DOCKERFILE, re.M)
    assert "--require-hashes --only-binary :all:" in DOCKERFILE
    assert "g++" in DOCKERFILE and re.search(r"^USER 1000$", DOCKERFILE, re.M)
    assert "RAY_JOB_STOP_WAIT_TIME_S=60" in DOCKERFILE and "HEALTHCHECK" in DOCKERFILE


def known(name: str, *vulnerabilities: str) -> dict[str, object]:
    vulns = [{"id": each, "fix_versions": ["2"]} for each in vulnerabilities]
    return {"name": name, "version": "1", "vulns": vulns}


def test_only_what_the_service_knows_is_clean() -> None:
    skipped = {"name": "a", "skip_reason": "Dependency not found"}
    assert audit.verdict([known("a"), known("b")], "", "pypi")[1] == 0
    text, code = audit.verdict([known("a"), known("b", "CVE-1")], "", "pypi")
    assert code == 1 and "b 1: CVE-1, fixed in 2" in text
    text, code = audit.verdict([skipped, known("b", "CVE-1")], "", "pypi")
    assert code == 2 and "CVE-1" in text and "does not know 1 of 2 packages (a)" in text
    text, code = audit.verdict([], "no route to host", "osv")
    assert code == 2 and text.count("\n") == 0 and "not audited" in text and "no route" in text
