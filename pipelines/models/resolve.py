"""Any reference to a model: folder, stage, checkpoint, MLflow run, registered model, baseline."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ce_model.network_config import network_in_key
from ce_model.networks import NetworkConfig
from ce_model.training import Objective
from pipelines import storage
from pipelines.errors import UserError
from pipelines.models import checkpoint, files
from pipelines.models.backbones import build_network
from pipelines.runtime.progress import plain_console
from pipelines.store_page.page import KEY_LETTERS
from pipelines.tracking import client, models, runs

Kind = Literal["model", "random", "random-kmeans", "autoencoder", "supervised"]


BASELINES = get_args(Kind)[1:]


REFERENCES = "a model folder, a pretraining stage, an MLflow run id or models:/name@alias"


RUN_ID = re.compile(r"[0-9a-f]{32}")
KEY = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")  # of a stage or a run: it says nothing to people


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """One model to measure."""

    name: str
    """Row of the tables."""
    kind: Kind
    uri: str
    """Model folder; empty where there is nothing on disk."""
    sha256: str
    """Of the weights; empty where each seed draws its own."""
    identity: str
    """Content key of weights, network and objective; part of every key."""
    network: NetworkConfig
    run_id: str | None = None
    """MLflow run that trained it."""


def resolve_named(ref: str) -> tuple[str, str]:
    """Label and reference of a `--model` value."""
    label, equals, rest = ref.partition("=")
    if equals and not re.search(r"[/:]", label):
        return label, rest
    return (ref if ref in BASELINES or RUN_ID.fullmatch(ref) else _short(ref)), ref


def _short(ref: str) -> str:
    """A model folder is called after its stage."""
    parts = ref.rstrip("/").split("/")
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def untrained_ref(name: str, kind: Kind, network: NetworkConfig) -> ModelRef:
    """Random weights of a network; the seed of the measurement draws them."""
    identity = storage.content_key([kind, network_in_key(network)])
    return ModelRef(name=name, kind=kind, uri="", sha256="", identity=identity, network=network)


def trained_ref(
    name: str, uri: str, *, kind: Kind = "model", run_id: str | None = None
) -> ModelRef:
    """A model folder; one whose name is a key is called after what was trained, too.

    Raises:
        UserError: it is not one.
    """
    try:
        description = storage.read_json(storage.join(uri, files.MODEL))
    except FileNotFoundError:
        raise UserError(
            f"model is '{uri}', where there is no {files.MODEL}; it must be {REFERENCES}, or, to "
            f"be measured, one of {', '.join(BASELINES)}"
        ) from None
    digest = description["info"]["weights_sha256"]
    if KEY.fullmatch(name):
        network, info = description["network"], description["info"]
        trained = network["preset"], info.get("pretext") or info.get("strategy", "")
        name = " ".join([*filter(None, trained), name[:KEY_LETTERS]])
    return ModelRef(
        name=name,
        kind=kind,
        uri=uri,
        sha256=digest,
        identity=storage.content_key([digest, description["network"], description["objective"]]),
        network=NetworkConfig(**description["network"]),
        run_id=run_id,
    )


def resolve_model(ref: str, *, store: str, tracking_uri: str) -> ModelRef:
    """The trained model that a reference names; registered ones are copied into the store.

    Raises:
        UserError: it names none.
    """
    name, ref = resolve_named(ref)
    if ref in BASELINES:
        raise UserError(
            f"model is '{ref}', which only jobs/evaluate.py knows; here it must be {REFERENCES}"
        )
    if run_id := _run_id(ref):
        return trained_ref(name, _folder_of_run(run_id, store, tracking_uri), run_id=run_id)
    if ref.startswith("models:/"):
        with tempfile.TemporaryDirectory() as temporary:
            run_id = models.download_model(tracking_uri, ref, Path(temporary))
            return trained_ref(name, _keep(Path(temporary), store), run_id=run_id)
    if checkpoint.is_checkpoint(ref):
        with tempfile.TemporaryDirectory() as temporary:
            _from_checkpoint(ref, temporary)
            return trained_ref(name, _keep(Path(temporary), store))
    found = trained_ref(name, files.folder_of(ref))
    try:
        return replace(found, run_id=run_of(found.uri, tracking_uri))
    except Exception as error:
        if not (client.may_pass(error) or isinstance(error, UserError)):
            raise
        plain_console().print(
            f"warning: MLflow did not answer, so the run of '{found.uri}' is not known "
            f"({client.describe_error(tracking_uri, error)})",
            soft_wrap=True,
        )
        return found


def _run_id(ref: str) -> str | None:
    """The run of a reference such as 0123456789abcdef0123456789abcdef or runs:/RUN/NAME."""
    if RUN_ID.fullmatch(ref):
        return ref
    if not ref.startswith("runs:/"):
        return None
    found = re.fullmatch(r"runs:/([0-9a-f]{32})(?:/[^/]+)?/?", ref)
    if found is None:
        raise UserError(f"model is '{ref}'; it must be runs:/RUN_ID/NAME, or the run's id")
    return found[1]


def _folder_of_run(run_id: str, store: str, tracking_uri: str) -> str:
    """The model folder of a run: where it was written, in this store, or as MLflow has it.

    The store may have been moved since, or be mounted elsewhere.
    """
    summary = models.run_summary(tracking_uri, run_id)
    places = [summary["model"]]
    if key := summary.get("key"):
        places.append(storage.join(storage.absolute(store), "pretrain", key[:16], "model"))
    for place in places:
        if storage.exists(storage.join(place, files.MODEL)):
            return str(place)
    if logged := summary.get("model_uri"):
        with tempfile.TemporaryDirectory() as temporary:
            models.download_model(tracking_uri, logged, Path(temporary))
            return _keep(Path(temporary), store)
    raise UserError(
        f"model is run '{run_id}', whose model folder is none of {', '.join(places)}, and which "
        "has logged no model; give the --store of its training, or the model folder"
    )


def run_of(uri: str, tracking_uri: str) -> str | None:
    """The MLflow run of the training that wrote a model folder; None when there is none."""
    key = storage.read_json(storage.join(uri, files.MODEL))["info"].get("key")
    store, inside, _ = uri.rpartition("/pretrain/")
    return runs.run_of_key(tracking_uri, key, storage.find_store_id(store) if inside else None)


def _from_checkpoint(uri: str, folder: str) -> None:
    """The generator of a training checkpoint as a model folder."""
    found = checkpoint.read(uri)
    state = found.state
    try:
        saved = found.tensors()
    except ValueError:
        raise UserError(
            f"checkpoint '{uri}' is not what it was when it was written; take another"
        ) from None
    if "network" not in state:
        raise UserError(
            f"checkpoint '{uri}' does not say of what network it is; measure the model folder of "
            "its pretraining stage instead"
        )
    tensors = checkpoint.exported_weights(saved, state.get("export", "raw"))
    network = NetworkConfig(**state["network"])
    objective = Objective(**{**state["objective"], "fill": tuple(state["objective"]["fill"])})
    generator = build_network(network)
    files.load_strictly(generator, tensors, uri)
    files.save_model(folder, generator, network, objective, {"steps": state["step"]})


def _keep(folder: Path, store: str) -> str:
    """Copy a downloaded model to where every node can read it."""
    found = trained_ref("", str(folder))
    kept = storage.join(storage.absolute(store), "evaluate", "models", found.sha256[:16])
    files.copy_model(str(folder), kept)
    return kept
