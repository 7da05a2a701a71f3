"""What is known of a model: its run, its evaluation reports, and the files that were logged."""

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ce_model.networks import predicts_images
from pipelines import storage
from pipelines.errors import UserError
from pipelines.models import files
from pipelines.models.files import LoadedModel
from pipelines.promotion import run_files
from pipelines.promotion.gates import ALARM, Candidate
from pipelines.tracking import models, registry
from pipelines.tracking.registry import RunFacts
from pipelines.tracking.runs import COMMIT_TAG
from pipelines.tracking.scores import Scores, scores_of

# Formats that are, or may hold, pickles: loading one can run anything.
PICKLE_SUFFIXES = {
    ".pkl", ".pickle", ".dill", ".joblib", ".pt", ".pth", ".pt2", ".ckpt", ".bin", ".npy", ".npz",
}  # fmt: skip
ZIP = b"PK\x03\x04"


def source_of(uri: str, run_id: str) -> str:
    """URI of the model that a run logged.

    Raises:
        UserError: no such run, one without a model, or one that cannot be read.
    """
    registry.run_facts(uri, run_id)
    summary = run_files.summary(uri, run_id)
    if summary is None or not summary.get("model_uri"):
        raise UserError(
            f"run is '{run_id}', which has logged no model; it must be a pretraining run that has "
            "ended well (give its jobs/pretrain.py command again)"
        )
    return str(summary["model_uri"])


def collect(uri: str, run_id: str, source: str) -> Candidate:
    """Look at everything that a gate may ask for.

    Args:
        uri: tracking server.
        run_id: pretraining run.
        source: the model that it logged, models:/<model id>.

    Raises:
        UserError: something could not be read, which is no evidence against a model.
    """
    facts = registry.run_facts(uri, run_id)
    own = run_files.reports(uri, run_id)
    sha256, problem, unsafe, loaded = _files(uri, source)
    evaluated = sorted({m["sha256"] for r in own for m in r["models"] if m["run_id"] == run_id})
    judged = sha256 if sha256 in evaluated else (*evaluated, "")[0]  # the gate `weights` says so
    scores = scores_of(own, str(judged))
    by_run = {run_id: scores, **_siblings(uri, facts, scores)}
    return Candidate(
        run_id=run_id,
        status=facts.status,
        logged_sha256=sha256,
        load_problem=problem,
        evaluated_sha256=frozenset(evaluated),
        scores={
            name: {run: s.values[name] for run, s in by_run.items() if name in s.values}
            for name in scores.values
        },
        measured=scores.measured,
        tasks=frozenset(scores.tasks),
        seeds=sum(bool(s.values) for s in by_run.values()),
        alarms={
            name.removeprefix(ALARM): v for name, v in facts.tags.items() if name.startswith(ALARM)
        },
        dataset_fingerprint=facts.tags.get("dataset_fingerprint", ""),
        code=facts.tags.get(COMMIT_TAG, ""),
        unsafe_files=unsafe,
        baselines=scores.baselines,
        strategy="" if loaded is None else str(loaded.info.get("strategy", "")),
        reads="" if loaded is None else describe_network(loaded),
        fills=loaded is not None and predicts_images(loaded.network),
    )


def _siblings(uri: str, facts: RunFacts, own: Scores) -> dict[str, Scores]:
    """Scores of the runs of other seeds, as far as they were measured in the same way."""
    if not (arm := facts.tags.get("arm")):
        return {}
    found = {}
    seeds = {facts.params.get("seed")}
    runs = run_files.call_server(
        f"the runs of other seeds from {uri}",
        lambda: registry.runs_tagged(uri, facts.experiment_id, "arm", arm),
    )
    for run in runs:
        if run.params.get("seed") in seeds:
            continue
        summary: Mapping[str, Any] = run_files.summary(uri, run.run_id) or {}
        reports = run_files.reports(uri, run.run_id)
        scores = scores_of(reports, summary.get("weights_sha256", ""))
        scores.values = {
            name: value
            for name, value in scores.values.items()
            if scores.measured[name] == own.measured.get(name)
        }
        if scores.values:
            seeds.add(run.params.get("seed"))
            found[run.run_id] = scores
    return found


def network_of(uri: str, source: str) -> str:
    """What a logged model takes and gives, as `describe_network` says; empty: it does not load."""
    return describe_network(loaded) if (loaded := _files(uri, source)[-1]) else ""


def describe_network(model: LoadedModel) -> str:
    """What a model takes and gives; models that differ in it cannot take each other's place."""
    network = model.network
    return f"{network.preset} (output {network.output}), {model.side} px"


def _files(uri: str, source: str) -> tuple[str | None, str, tuple[str, ...], LoadedModel | None]:
    """sha256 of the logged weights, why they do not load, files that could run code, the model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            models.download_model(uri, source, folder)
        except UserError as error:
            if run_files.has_weights(uri, source):
                raise run_files.read_problem(source, str(error)) from None
            return None, str(error), (), None
        unsafe = tuple(
            sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if may_run(path))
        )
        digest = storage.sha256_of(folder / files.WEIGHTS)
        try:
            return digest, "", unsafe, files.load_model(str(folder))
        except (UserError, ValueError, KeyError, TypeError) as error:
            return digest, str(error).replace(str(folder), source), unsafe, None


def may_run(path: Path) -> bool:
    """Whether a file is a pickle or may hold one; an archive of source alone does not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4)
    pickled = len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5
    archive = head == ZIP and not _holds_source_alone(path)
    return pickled or archive or path.suffix in PICKLE_SUFFIXES


def _holds_source_alone(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as opened:
            return all(name.endswith(".py") for name in opened.namelist())
    except zipfile.BadZipFile:
        return False
