"""Manifests fit the KubeRay 1.7 definitions, are restricted, and agree on versions."""

import base64
import configparser
import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers import ROOT, free_port, wait_until_serving
from ray._private.utils import resolve_object_store_memory

INFRA = ROOT / "infra"
# openAPIV3Schema of version v1 by kind, of KubeRay 1.7 (Apache License 2.0), without descriptions.
SCHEMAS = ROOT / "tests" / "schemas" / "kuberay-v1.json.gz"
FILES = sorted((INFRA / "kubernetes").glob("*.yaml"))


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every manifest, those inside config maps too."""
    for path in FILES:
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document
            for name, text in document.get("data", {}).items():
                if name.endswith(".yaml"):
                    yield f"{path.name}/{name}", yaml.safe_load(text)


OF_RAY = [(name, d) for name, d in documents() if d["apiVersion"] == "ray.io/v1"]


def closed(schema: Any) -> Any:
    """The schema with unknown names forbidden, as strict decoding does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(part) for name, part in schema.items()}
    if isinstance(found.get("properties"), dict) and "additionalProperties" not in found:
        found["additionalProperties"] = bool(found.get("x-kubernetes-preserve-unknown-fields"))
    return found


@cache
def definition(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = closed(json.loads(gzip.decompress(SCHEMAS.read_bytes()))[kind])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.parametrize(("name", "document"), OF_RAY, ids=[name for name, _ in OF_RAY])
def test_a_manifest_fits_its_definition(name: str, document: dict[str, Any]) -> None:
    if document["kind"] == "RayService":  # no definition of ours; its cluster is a RayCluster's
        cluster = {"kind": "RayCluster", "spec": document["spec"]["rayClusterConfig"]}
        document = {"apiVersion": document["apiVersion"], "metadata": {}, **cluster}
    jsonschema.validate(document, definition(document["kind"]))


def test_the_definition_catches_a_typo_and_a_wrong_type() -> None:
    (document,) = (d for _, d in OF_RAY if d["kind"] == "RayCronJob")
    schema = definition("RayCronJob")
    document = yaml.safe_load(yaml.safe_dump(document))
    document["spec"]["concurrencyPolicy"] = "Forbid"
    with pytest.raises(jsonschema.ValidationError, match="concurrencyPolicy"):
        jsonschema.validate(document, schema)
    del document["spec"]["concurrencyPolicy"]
    group = document["spec"]["jobTemplate"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group["maxReplicas"] = "2"
    with pytest.raises(jsonschema.ValidationError, match="'2' is not of type"):
        jsonschema.validate(document, schema)


def pinned(package: str) -> str:
    (version,) = re.findall(
        rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    return str(version)


def values(tree: Any, name: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == name:
                yield value
            yield from values(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, name)


def test_image_tag_ray_version_and_constraints_agree() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    (own,) = re.findall(r'^version = "(\S+)"$', pyproject, re.MULTILINE)
    ray = pinned("ray")
    assert f"=={ray}" in pyproject and f"mlflow=={pinned('mlflow')}" in pyproject
    images = {i for _, d in documents() for i in values(d, "image") if "kubectl" not in i}
    assert images == {f"context-encoder:{own}-ray{ray}"}
    assert {v for _, d in OF_RAY for v in values(d, "rayVersion")} == {ray}
    assert f"context-encoder:{own}-ray{ray}" in (ROOT / "docs" / "deploy.md").read_text()


def test_every_schedule_calls_the_same_sweep() -> None:
    entries = [e for _, d in OF_RAY for e in values(d, "entrypoint") if "ablate" in e]
    others = [INFRA / "crontab", INFRA / "systemd" / "context-encoder-ablation.service"]
    entries += [path.read_text() for path in others]
    assert len(entries) == 4
    for entry in entries:
        assert "jobs/ablate.py --config configs/ablation_nightly.yaml" in entry
        assert "--tick nightly" in entry
    (cron,) = (d for _, d in documents() if d["kind"] == "CronJob")
    assert cron["apiVersion"] == "batch/v1" and cron["spec"]["concurrencyPolicy"] == "Forbid"


SCHEDULED = """\
#!/bin/sh
if [ "$1" = create ]; then echo rayjob.ray.io/sweep; exit; fi
reply=$(head -n 1 "$REPLIES")
sed -i 1d "$REPLIES"
if [ "$reply" = "no answer" ]; then exit 1; fi
echo "$reply"
"""


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        (["", "Running RUNNING", "no answer", "no answer", "Complete SUCCEEDED"], 0),
        (["Running RUNNING", "Retrying ", "Complete FAILED"], 1),
        (["Initializing ", "Failed "], 1),
        (["ValidationFailed "], 1),
        (["no answer"] * 20, 1),
    ],
)
def test_the_schedule_waits_for_the_end_of_its_job(
    replies: list[str], code: int, tmp_path: Path
) -> None:
    (cron,) = (d for _, d in documents() if d["kind"] == "CronJob")
    ((container,),) = values(cron, "containers")
    left = tmp_path / "replies"
    left.write_text("".join(f"{reply}\n" for reply in replies))
    for name, text in {"kubectl": SCHEDULED, "sleep": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REPLIES": str(left)}
    command = [*container["command"], *container["args"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, left.read_text()) == (code, "")
    assert code == 0 or replies[-1] in done.stderr


def test_the_service_can_join_the_ray_of_its_machine() -> None:
    """A driver needs the sockets and the session folder under /tmp/ray of whoever runs Ray."""
    unit = (INFRA / "systemd" / "context-encoder-ablation.service").read_text()
    assert "\nPrivateTmp=true" not in unit
    (writable,) = re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE)
    assert "/tmp" in writable.split()  # ProtectSystem=strict makes it read-only


def test_the_schedule_may_reach_the_api_server_behind_its_service() -> None:
    """A policy sees the address after translation: 6443 nearly everywhere, and not 443."""
    (cron,) = (d for _, d in documents() if d["kind"] == "CronJob")
    labels = cron["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    policies = [d["spec"] for _, d in documents() if d["kind"] == "NetworkPolicy"]
    own = [p for p in policies if p["podSelector"].get("matchLabels") == labels]
    allowed = {port["port"] for p in own for e in p["egress"] for port in e["ports"]}
    assert 6443 in allowed


def test_the_service_has_a_home_that_it_can_write() -> None:
    """Ray keeps its token there, and a Ray that cannot write it does not start."""
    unit = (INFRA / "systemd" / "context-encoder-ablation.service").read_text()
    assert "\nProtectSystem=strict\n" in unit
    (home,) = re.findall(r"^Environment=HOME=(.*)$", unit, re.MULTILINE)
    (writable,) = re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE)
    assert home in writable.split()


def test_each_manifest_works_without_the_other_schedules() -> None:
    """The account of its pods is in the file that all need, or in its own."""
    accounts = [(n, d["metadata"]["name"]) for n, d in documents() if d["kind"] == "ServiceAccount"]
    for name, document in documents():
        at_hand = {name.split("/")[0], "serviceaccount.yaml"}
        defined = {account for file, account in accounts if file in at_hand}
        assert {*values(document, "serviceAccountName")} <= defined


PASSWORD = "long enough for anybody"


def test_a_tracking_server_with_logins_starts_as_written_and_lets_nobody_else_in(
    tmp_path: Path,
) -> None:
    text = (INFRA / "mlflow" / "README.md").read_text()
    (written,) = re.findall(r"^    (MLFLOW_AUTH.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    words = shlex.split(written.replace("\\\n", ""))
    given = dict.fromkeys((w.split("=")[0] for w in words if w[:7] == "MLFLOW_"), PASSWORD)
    logins = configparser.ConfigParser()
    logins.read(INFRA / "mlflow" / "auth.ini")
    assert "infra/mlflow/auth.ini" in written
    assert logins["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    logins["mlflow"]["database_uri"] = f"sqlite:///{tmp_path}/logins.db"
    with (tmp_path / "auth.ini").open("w") as file:
        logins.write(file)
    given["MLFLOW_AUTH_CONFIG_PATH"] = str(tmp_path / "auth.ini")
    port = free_port()
    here = ["--host=127.0.0.1", f"--port={port}", "--allowed-hosts=127.0.0.1:*", "--workers=1"]
    stores = [
        f"--backend-store-uri=sqlite:///{tmp_path}/m.db",
        f"--artifacts-destination={tmp_path}",
    ]
    command = [sys.executable, "-m", *words[len(given) :], *here, *stores]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, **given}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_serving(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
            requested = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(requested, timeout=30)
            login = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
            request = urllib.request.Request(requested, headers={"Authorization": f"Basic {login}"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 200
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


PODS = [
    (f"{name} {number}", pod)
    for name, d in documents()
    for number, pod in enumerate(p for p in values(d, "spec") if "containers" in p)
]


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_pods_are_restricted(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert rights["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]
        secret = re.compile("token|password|key", re.IGNORECASE)
        named = [e for e in container.get("env", []) if secret.search(e["name"])]
        assert all("secretKeyRef" in e.get("valueFrom", {}) for e in named)


def test_clusters_ask_for_a_token() -> None:
    clusters = [c for _, d in OF_RAY for c in values(d, "rayClusterSpec")]
    assert len(clusters) == 3
    assert {cluster["authOptions"]["mode"] for cluster in clusters} == {"token"}
    assert all(c["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" for c in clusters)


def test_what_submits_a_job_is_restricted_too() -> None:
    """KubeRay's own submitter, without a template, has no security context."""
    templates = [t for _, d in OF_RAY for t in values(d, "submitterPodTemplate")]
    jobs = [d for _, d in OF_RAY if d["kind"] != "RayService"]  # a service is not submitted
    assert len(templates) == len(jobs)
    submitting = [template["spec"] for template in templates]
    assert all(pod in [p for _, p in PODS] for pod in submitting)  # so the test above sees them
    assert {pod["restartPolicy"] for pod in submitting} == {"Never"}


RAY_PODS = [(name, pod) for name, pod in PODS if any(v["name"] == "memory" for v in pod["volumes"])]


@pytest.mark.parametrize(("name", "pod"), RAY_PODS, ids=[name for name, _ in RAY_PODS])
def test_the_object_store_fits_into_shared_memory(
    name: str, pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts a store that is larger than /dev/shm on disk, with no more than a warning."""
    ((container,), volumes) = (pod["containers"], pod["volumes"])
    memory = gibibytes(container["resources"]["limits"]["memory"])
    (volume,) = (v["emptyDir"] for v in volumes if v["name"] == "memory")
    shared = gibibytes(volume["sizeLimit"])
    monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda: shared)
    assert resolve_object_store_memory(memory) <= shared


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi")) << 30
