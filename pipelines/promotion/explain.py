"""Where a registered model came from, in words and numbers, and how to make it again."""

import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.data.manifest import read_manifest
from pipelines.errors import UserError
from pipelines.models import files
from pipelines.promotion import run_files
from pipelines.tracking import models, registry, runs
from pipelines.tracking.registry import RunFacts, Version
from pipelines.tracking.scores import scores_of

# Where and how a run was carried out, not what it computed.
NOT_REPRODUCED = {"summary", "tracking_uri", "experiment", "store", "threads_per_worker"}
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def version_of(uri: str, reference: str) -> Version:
    """The registered version that `models:/NAME@ALIAS` or `models:/NAME/3` means.

    Raises:
        UserError: it means none.
    """
    parts = REFERENCE.fullmatch(reference)
    if parts is None:
        raise UserError(
            f"explain is '{reference}'; it must be like models:/context-encoder@champion or "
            "models:/context-encoder/3"
        )
    if parts["alias"]:
        found = registry.by_alias(uri, parts["name"], parts["alias"])
    else:
        found = registry.by_number(uri, parts["name"], parts["version"])
    if found is None:
        raise UserError(f"explain is '{reference}', which {uri} does not have")
    return found


def explain(uri: str, reference: str) -> str:
    """Everything that led to a registered model."""
    version = version_of(uri, reference)
    facts = registry.run_facts(uri, version.run_id)
    summary = run_files.summary(uri, version.run_id) or {}
    with tempfile.TemporaryDirectory() as temporary:
        models.download_model(uri, version.source, Path(temporary))
        info = files.load_model(temporary).info
    scores = scores_of(run_files.reports(uri, version.run_id), info["weights_sha256"])
    lines = {
        "model": f"{version.name} version {version.version}, {version.source}",
        "weights sha256": info["weights_sha256"],
        "training run": f"{version.run_id} ({facts.status})",
        "dataset": f"fingerprint {facts.tags.get('dataset_fingerprint', 'not recorded')}",
        "masks": _masks(summary),
        "code": facts.tags.get(runs.COMMIT_TAG, "not recorded"),
        "seed": facts.params.get("seed", "not recorded"),
        "steps": str(summary.get("steps", "not recorded")),
        "faults survived": f"{summary.get('restarts', '?')} restarts of workers or of the job, "
        f"{summary.get('updates_skipped', '?')} updates skipped for non-finite values",
        "made again by": reproduce(facts),
    }
    text = [f"{name:16} {value}" for name, value in lines.items()]
    text += ["", "scores"]
    text += [f"  {name} = {value:.6g}" for name, value in sorted(scores.values.items())]
    text += ["", "audit trail"]
    audit = {n: v for n, v in version.tags.items() if n.startswith("promotion.")}
    text += [f"  {name}: {value}" for name, value in sorted(audit.items())]
    text += ["", "config"]
    text += [f"  {name} = {value}" for name, value in sorted(facts.params.items())]
    return "\n".join(text)


def _masks(summary: Mapping[str, Any]) -> str:
    """Version of the mask functions, as the dataset says."""
    try:
        manifest = read_manifest(str(summary.get("dataset", "")))
    except (UserError, OSError):
        return "the dataset is not reachable from here"
    versions = sorted({spec.version for spec in manifest.masks})
    return f"version {', '.join(map(str, versions))}, seed {manifest.seed}"


def reproduce(facts: RunFacts) -> str:
    """The command that gives the same weights from the same dataset and commit."""
    if registry.GIVEN_TAG in facts.tags:
        return shlex.join(["python", "jobs/pretrain.py", *_flags_of(facts.tags)])
    flags = []  # of a run of an earlier version, whose parameters are what was given
    for name, value in sorted(facts.params.items()):
        if "." in name or name in NOT_REPRODUCED or value == "None":
            continue
        values = value.strip("()").split(", ") if value.startswith("(") else [value]
        flags += [f"--{name.replace('_', '-')}", *values]
    return shlex.join(["python", "jobs/pretrain.py", *flags])


def _flags_of(tags: Mapping[str, str]) -> Iterator[str]:
    """The flags of the settings that a run was given."""
    for name, value in sorted(json.loads(tags[registry.GIVEN_TAG]).items()):
        if name not in NOT_REPRODUCED:
            yield f"--{name.replace('_', '-')}"
            yield from map(str, value if isinstance(value, list) else [value])
