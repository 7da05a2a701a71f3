"""Every overlay renders, fits the definitions strictly, and its pods are restricted."""

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helpers import ROOT
from ray._private.utils import resolve_object_store_memory

from pipelines.cli import parse

KUBERNETES = ROOT / "infra" / "kubernetes"
# openAPIV3Schema of version v1 by kind, of KubeRay 1.7 (Apache License 2.0), without descriptions.
SCHEMAS = ROOT / "tests" / "schemas" / "kuberay-v1.json.gz"
OVERLAYS = ("kind", "s3", "gpu", "kueue")
NAMESPACE = "context-encoder"
PART_OF = {"app.kubernetes.io/part-of": "context-encoder"}

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders them")


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for overlay in OVERLAYS:
        for folder in (f"overlays/{overlay}", f"overlays/{overlay}/jobs"):
            for document in rendered(folder):
                yield f"{folder} {document['kind']} {document['metadata']['name']}", document


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


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The template, metadata and spec, of every pod that is asked for."""
    for name, document in documents():
        for key in ("template", "submitterPodTemplate"):
            for template in values(document, key):
                assert "containers" in template.get("spec", {}), f"{name}: an empty pod"
                yield name, template


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
def definition(kind: str) -> Any:
    schema: dict[str, Any] = closed(json.loads(gzip.decompress(SCHEMAS.read_bytes()))[kind])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def check(document: dict[str, Any]) -> None:
    """Validate strictly against the definition of its kind; Kueue's are not at hand."""
    group = document["apiVersion"].partition("/")[0]
    if group == "ray.io":
        if document["kind"] == "RayService":  # no definition of ours; its cluster is a RayCluster's
            cluster = {"kind": "RayCluster", "spec": document["spec"]["rayClusterConfig"]}
            document = {"apiVersion": document["apiVersion"], "metadata": {}, **cluster}
        definition(document["kind"]).validate(document)
    elif group != "kueue.x-k8s.io":
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_everything_fits_its_definition() -> None:
    kinds = set()
    different = {json.dumps(document): (name, document) for name, document in documents()}
    for name, document in different.values():
        try:
            check(document)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            raise AssertionError(f"{name}: {error}") from error
        kinds.add(document["kind"])
    assert kinds >= {"RayCluster", "RayJob", "RayService", "CronJob", "StatefulSet", "LocalQueue"}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("RayJob", {"concurrencyPolicy": "Forbid"}, "concurrencyPolicy"),
        ("RayJob", {"backoffLimit": "2"}, "'2' is not of type"),
        ("CronJob", {"concurencyPolicy": "Forbid"}, "concurencyPolicy"),
    ],
)
def test_the_definitions_catch_a_typo_and_a_wrong_type(
    kind: str, change: dict[str, Any], message: str
) -> None:
    document = next(d for _, d in documents() if d["kind"] == kind)
    changed = {**document, "spec": {**document["spec"], **change}}
    with pytest.raises(
        (jsonschema.ValidationError, kubernetes_validate.ValidationError), match=message
    ):
        check(changed)


def pinned(package: str) -> str:
    text = (ROOT / "constraints.txt").read_text()
    (version,) = re.findall(rf"^{package}==(\S+)$", text, re.MULTILINE)
    return str(version)


def test_image_tag_ray_version_and_constraints_agree() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    (own,) = re.findall(r'^version = "(\S+)"$', pyproject, re.MULTILINE)
    ray = pinned("ray")
    assert f"=={ray}" in pyproject and f"mlflow=={pinned('mlflow')}" in pyproject
    images = {image for _, d in documents() for image in values(d, "image")}
    assert images == {f"context-encoder:{own}-ray{ray}", "postgres:15.18-bookworm"}
    assert {version for _, d in documents() for version in values(d, "rayVersion")} == {ray}
    assert f"context-encoder:{own}-ray{ray}" in (ROOT / "docs" / "deploy.md").read_text()


def test_pods_are_restricted_and_ours() -> None:
    """What Pod Security's `restricted` asks for, a read-only root, limits, and our label."""
    secret = re.compile("token|password|key", re.IGNORECASE)
    count = 0
    for name, template in pods():
        pod = template["spec"]
        assert PART_OF.items() <= template["metadata"]["labels"].items(), name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"] + pod.get("initContainers", []):
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False, name
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]
            named = [e for e in container.get("env", []) if secret.search(e["name"])]
            assert all("secretKeyRef" in e.get("valueFrom", {}) for e in named), name
            count += 1
    assert count > 40
    for _, document in documents():
        for options in values(document, "autoscalerOptions"):  # the sidecar that KubeRay adds
            assert options["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert options["securityContext"]["readOnlyRootFilesystem"] is True
        for labels in [document["metadata"]["labels"]] if document["kind"] == "Namespace" else []:
            assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_everything_is_in_a_namespace_of_its_own() -> None:
    for name, document in documents():
        if document["kind"] not in ("Namespace", "ResourceFlavor", "ClusterQueue"):
            assert document["metadata"]["namespace"] == NAMESPACE, name


def test_policies_touch_our_pods_alone() -> None:
    """A policy without a selector cuts off whatever else runs in the namespace."""
    labels = {label for _, t in pods() for label in t["metadata"]["labels"].items()}
    for name, document in documents():
        if document["kind"] != "NetworkPolicy":
            continue
        selector = document["spec"]["podSelector"]
        wanted = set(selector.get("matchLabels", {}).items())
        for rule in selector.get("matchExpressions", []):
            assert rule["operator"] == "In"
            wanted |= {(rule["key"], value) for value in rule["values"]}
        assert wanted and wanted <= labels, name


def test_nobody_leaves_but_by_a_named_door() -> None:
    """Every rule out of a pod names a port, and a peer unless it is for the API server or S3."""
    for name, document in documents():
        if document["kind"] == "NetworkPolicy":
            for rule in document["spec"].get("egress", []):
                inside = rule.get("to") == [
                    {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "ray"}}}
                ]
                assert rule.get("ports") or inside, name
                peer = document["metadata"]["name"] in ("s3-egress", "autoscaler")
                assert peer or rule["to"], name


def test_clusters_ask_for_a_token_and_give_a_stopped_job_its_time() -> None:
    clusters = [
        cluster
        for _, d in documents()
        for cluster in (
            *values(d, "rayClusterSpec"),
            *values(d, "rayClusterConfig"),
            *([d["spec"]] if d["kind"] == "RayCluster" else []),
        )
    ]
    assert len(clusters) == len(OVERLAYS) * 5
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-auth"}
        head = cluster["headGroupSpec"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        variables = {e["name"]: e.get("value") for e in next(values(head["template"], "env"))}
        assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == "60"


def test_a_job_without_room_ends() -> None:
    jobs = [d for _, d in documents() if d["kind"] == "RayJob"]
    assert len(jobs) == len(OVERLAYS) * 3
    for job in jobs:
        assert job["spec"]["preRunningDeadlineSeconds"] < job["spec"]["activeDeadlineSeconds"]
        assert job["spec"]["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.slow
def test_the_settings_are_those_of_the_jobs() -> None:
    """Every file of /settings parses as the config of the job that reads it."""
    from jobs import ablate, evaluate, prepare, pretrain
    from pipelines.ablation.config import AblateConfig
    from pipelines.evaluation.config import EvaluateConfig
    from pipelines.prepare.config import PrepareConfig
    from pipelines.pretrain.config import PretrainConfig
    from pipelines.pretrain.recipe import resolve_recipe

    kinds = {
        "prepare": (prepare, PrepareConfig), "pretrain": (pretrain, PretrainConfig),
        "evaluate": (evaluate, EvaluateConfig), "ablation": (ablate, AblateConfig),
    }  # fmt: skip
    entries = {e for _, d in documents() for e in values(d, "entrypoint")}
    entries |= {" ".join(c) for _, d in documents() for c in values(d, "command") if "submit" in c}
    for stage in ("volume", "bucket"):
        parsed: dict[str, Any] = {}
        for name, (job, config) in kinds.items():
            path = KUBERNETES / "settings" / stage / f"{name}.yaml"
            parsed[name] = parse(config, ["--config", str(path)])
            assert any(
                f"jobs/{job.__name__.rpartition('.')[2]}.py --config" in entry
                and f"/settings/{name}.yaml" in entry
                for entry in entries
            )
        made, wanted = parsed["prepare"].masks, resolve_recipe(parsed["pretrain"])
        assert (wanted.strategy, wanted.side) in {(spec.strategy, spec.side) for spec in made}


def test_one_job_is_chosen_by_a_command_that_can_choose() -> None:
    """`kubectl replace` has no selector, `kubectl apply` has."""
    places = [*KUBERNETES.rglob("jobs/kustomization.yaml"), ROOT / "docs" / "deploy.md"]
    commands = [re.sub(r"&&\n[# ]*", "&& ", place.read_text()) for place in places]
    assert len(places) == 6
    for text in commands:
        (line,) = re.findall(r"kubectl .*-l context-encoder/job=pretrain", text)
        assert re.match(r"kubectl delete rayjob pretrain .* && kubectl apply -k ", line)


def test_the_object_store_fits_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts a store that is larger than /dev/shm on disk, with no more than a warning."""
    for name, template in pods():
        pod = template["spec"]
        volumes = {v["name"]: v for v in pod["volumes"]}
        if "memory" not in volumes:
            continue
        (container,) = pod["containers"]
        shared = gibibytes(volumes["memory"]["emptyDir"]["sizeLimit"])
        memory = gibibytes(container["resources"]["limits"]["memory"])
        monkeypatch.setattr(
            "ray._private.utils.get_shared_memory_bytes", lambda shared=shared: shared
        )
        assert resolve_object_store_memory(memory) <= shared, name


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi")) << 30


def test_the_tracking_server_is_reached_by_exact_names_alone() -> None:
    """A pattern such as mlflow.*.svc* also fits mlflow.a.svc.evil.com."""
    arguments = {a for _, d in documents() for args in values(d, "args") for a in args}
    (hosts,) = (a.partition("=")[2] for a in arguments if a.startswith("--allowed-hosts="))
    assert "*" not in hosts and {"mlflow:5000", "localhost:5000"} <= set(hosts.split(","))


def test_accounts_and_maps_that_pods_name_exist() -> None:
    for overlay in OVERLAYS:
        platform = rendered(f"overlays/{overlay}")
        names = {(d["kind"], d["metadata"]["name"]) for d in platform}
        for document in (*platform, *rendered(f"overlays/{overlay}/jobs")):
            for account in values(document, "serviceAccountName"):
                assert ("ServiceAccount", account) in names
            for volumes in values(document, "volumes"):
                for volume in volumes:
                    if "configMap" in volume:
                        assert ("ConfigMap", volume["configMap"]["name"]) in names
                    if claim := volume.get("persistentVolumeClaim"):
                        assert ("PersistentVolumeClaim", claim["claimName"]) in names
